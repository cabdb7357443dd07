// Speaks a text through the gateway and plays it while it comes; registers voices.

const RATE = 24000; // Hz of the audio that the gateway sends
const PEAK_SAMPLES = 240; // in one bar of the waveform: 10 ms
const LEAD_SECONDS = 0.1; // played that much later than it came, so that an uneven network is not heard
const MAX_RECORDING_SECONDS = 30;

const $ = (id) => document.getElementById(id);

class Waveform {
  constructor(canvas) {
    this.canvas = canvas;
    this.clear();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear() {
    this.peaks = [];
    this.played = 0;
    this.draw();
  }

  add(samples) {
    for (let start = 0; start < samples.length; start += PEAK_SAMPLES) {
      const part = samples.subarray(start, start + PEAK_SAMPLES);
      this.peaks.push(part.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0));
    }
    this.draw();
  }

  draw() {
    const { canvas, peaks } = this;
    const { color, borderTopColor } = getComputedStyle(canvas);
    const [width, height] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    const shown = Math.max(peaks.length, 200); // two seconds fill the width
    const loudest = peaks.reduce((most, peak) => Math.max(most, peak), 0.05);
    for (let x = 0; x < width; x += 1) {
      const from = Math.floor((x / width) * shown);
      if (from >= peaks.length) break;
      const to = Math.max(from + 1, Math.floor(((x + 1) / width) * shown));
      const peak = Math.max(...peaks.slice(from, to));
      pen.fillStyle = from * PEAK_SAMPLES < this.played ? color : borderTopColor;
      const tall = Math.max(1, (peak / loudest) * height * 0.9);
      pen.fillRect(x, (height - tall) / 2, 1, tall);
    }
  }
}

// Plays chunks gaplessly, each scheduled to the sample behind the one before it.
class Player {
  constructor() {
    this.context = new AudioContext({ sampleRate: RATE });
    this.context.resume();
    this.samples = 0;
    this.gaps = 0;
    this.next = 0;
  }

  add(samples) {
    const now = this.context.currentTime;
    if (this.next < now) {
      if (this.samples) this.gaps += 1;
      this.next = now + LEAD_SECONDS;
    }
    const buffer = this.context.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    source.start(this.next);
    this.next += samples.length / RATE;
    this.samples += samples.length;
  }

  get left() {
    return Math.max(0, this.next - this.context.currentTime);
  }

  get played() {
    return Math.max(0, this.samples - this.left * RATE);
  }

  close() {
    return this.context.close();
  }
}

const waveform = new Waveform($("waveform"));
let current = null; // what is being spoken: its player, and how to abort its request

function headers() {
  const key = $("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new Error(told?.error?.message ?? `The gateway answered ${answer.status}.`);
}

function show(id, text) {
  $(id).textContent = text;
}

function complain(message) {
  show("error", message);
  $("error").hidden = !message;
}

// The samples of whole ones among `bytes`, and the odd byte that belongs to the next.
function split(bytes) {
  const samples = new Float32Array(Math.floor(bytes.length / 2));
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let i = 0; i < samples.length; i += 1) samples[i] = view.getInt16(2 * i, true) / 32768;
  return [samples, bytes.subarray(2 * samples.length)];
}

function joined(head, tail) {
  const bytes = new Uint8Array(head.length + tail.length);
  bytes.set(head);
  bytes.set(tail, head.length);
  return bytes;
}

async function speak() {
  stop();
  const run = { player: new Player(), request: new AbortController() };
  current = run;
  const started = performance.now();
  const since = () => (performance.now() - started) / 1000;
  for (const id of ["first-audio", "seconds", "factor", "gaps"]) show(id, "–");
  waveform.clear();
  complain("");
  show("status", "Waiting for the first audio …");
  $("stop").disabled = false;
  try {
    const body = { model: "cosyvoice", input: $("text").value, response_format: "pcm", speed: Number($("speed").value) };
    if ($("voice").value) body.voice = $("voice").value;
    if ($("instructions").value.trim()) body.instructions = $("instructions").value.trim();
    const answer = await call("/v1/audio/speech", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: run.request.signal,
    });
    let rest = new Uint8Array();
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      const [samples, odd] = split(joined(rest, value));
      rest = odd;
      if (!samples.length) continue;
      if (!run.player.samples) {
        show("first-audio", `${since().toFixed(2)} s`);
        show("status", "Speaking.");
        animate(run);
      }
      run.player.add(samples);
      waveform.add(samples);
      const seconds = run.player.samples / RATE;
      show("seconds", `${seconds.toFixed(2)} s`);
      show("factor", (since() / seconds).toFixed(2));
      show("gaps", String(run.player.gaps));
    }
    await new Promise((resolve) => setTimeout(resolve, run.player.left * 1000));
    if (current === run) finish("Done.");
  } catch (error) {
    if (current !== run) return; // stopped, which has been told
    complain(error.name === "TypeError" ? "The connection broke off." : error.message);
    finish("Failed.");
  }
}

function stop() {
  if (!current) return;
  current.request.abort();
  finish("Stopped.");
}

function finish(status) {
  const { player } = current;
  current = null;
  waveform.played = player.played;
  waveform.draw();
  $("stop").disabled = true;
  show("status", status);
  player.close();
}

function animate(run) {
  if (current !== run) return;
  waveform.played = run.player.played;
  waveform.draw();
  requestAnimationFrame(() => animate(run));
}

async function listVoices(chosen) {
  const { data, changes } = await (await call("/v1/audio/voices")).json();
  const options = data.map(({ id, name }) => new Option(name, id));
  $("voice").replaceChildren(...(options.length ? options : [new Option("Default", "")]));
  if (chosen) $("voice").value = chosen;
  $("add-voice").hidden = !changes;
}

// A recording or a file as WAV: mono, 16 bits, which every server reads.
async function toWav(blob) {
  const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, index) => decoded.getChannelData(index));
  const view = new DataView(new ArrayBuffer(44 + 2 * decoded.length));
  const ascii = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  ascii(0, "RIFF");
  view.setUint32(4, 36 + 2 * decoded.length, true);
  ascii(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  ascii(36, "data");
  view.setUint32(40, 2 * decoded.length, true);
  for (let i = 0; i < decoded.length; i += 1) {
    const mean = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
    view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, mean)) * 32767), true);
  }
  return new Blob([view], { type: "audio/wav" });
}

let sample = null; // the voice to add, as WAV
let recorder = null;

async function take(blob) {
  try {
    sample = await toWav(blob);
  } catch {
    sample = null;
    show("voice-status", "This is no audio that the browser can read.");
    return;
  }
  $("preview").src = URL.createObjectURL(sample);
  $("preview").hidden = false;
  show("voice-status", `${((sample.size - 44) / 2 / RATE).toFixed(1)} s of audio.`);
}

async function record() {
  if (recorder) return recorder.stop();
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  const parts = [];
  recorder = new MediaRecorder(microphone);
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = async () => {
    recorder = null;
    microphone.getTracks().forEach((track) => track.stop());
    $("record").setAttribute("aria-pressed", "false");
    show("record", "Record again");
    await take(new Blob(parts));
  };
  recorder.start();
  const mine = recorder;
  setTimeout(() => mine === recorder && recorder.stop(), MAX_RECORDING_SECONDS * 1000);
  $("record").setAttribute("aria-pressed", "true");
  show("record", "Stop recording");
  show("voice-status", "Recording.");
}

async function register() {
  if (!sample) return show("voice-status", "Record the voice, or choose a file.");
  const form = new FormData();
  form.set("name", $("name").value);
  form.set("audio_sample", sample, "voice.wav");
  form.set("consent", "confirmed on the gateway's page");
  if ($("transcript").value.trim()) form.set("prompt_text", $("transcript").value.trim());
  show("voice-status", "The server listens …");
  const { id } = await (await call("/v1/audio/voices", { method: "POST", body: form })).json();
  await listVoices(id);
  show("voice-status", `${id} can speak now.`);
}

$("speak-form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
$("voice-form").addEventListener("submit", (event) => {
  event.preventDefault();
  register().catch((error) => show("voice-status", error.message));
});
$("key-form").addEventListener("submit", (event) => event.preventDefault()); // leaving the field has the voices listed
$("stop").addEventListener("click", stop);
$("record").addEventListener("click", () => record().catch((error) => show("voice-status", error.message)));
$("file").addEventListener("change", ({ target }) => target.files[0] && take(target.files[0]));
$("speed").addEventListener("input", ({ target }) => show("speed-shown", Number(target.value).toFixed(1)));
$("key").addEventListener("change", () => listVoices().catch((error) => complain(error.message)));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("speak-form").requestSubmit();
});
if (!navigator.mediaDevices) {
  $("record").disabled = true;
  show("record-hint", "Recording needs https, or this very machine.");
}
listVoices().catch((error) => complain(error.message));
