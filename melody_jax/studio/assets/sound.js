// Pictures of sounds: a waveform and a spectrogram over one time axis, with a playhead and, if wanted, a region.

import { element } from "./dom.js";

const SPECTROGRAM_HEIGHT = 160;
const NARROWEST = 240;
const WIDEST = 1600;
const WAVE_HEIGHT = 56;
const DECODING_RATE = 24000;

// The loudest samples of so many equal parts of a sound, as [lowest, highest].
export function peaks(buffer, columns) {
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i));
  return Array.from({ length: columns }, (_, column) => {
    const begin = Math.floor((column * buffer.length) / columns);
    const end = Math.max(begin + 1, Math.floor(((column + 1) * buffer.length) / columns));
    let low = 0;
    let high = 0;
    for (const samples of channels) {
      for (let i = begin; i < end; i += 1) {
        if (samples[i] < low) low = samples[i];
        if (samples[i] > high) high = samples[i];
      }
    }
    return [low, high];
  });
}

export async function decode(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`The sound cannot be read (${response.status})`);
  const data = await response.arrayBuffer();
  return new OfflineAudioContext(1, 1, DECODING_RATE).decodeAudioData(data);
}

function drawWave(canvas, buffer) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * scale));
  const height = Math.round(WAVE_HEIGHT * scale);
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(canvas).color;
  peaks(buffer, width).forEach(([low, high], column) => {
    const top = ((1 - high) * height) / 2;
    context.fillRect(column, top, 1, Math.max(scale, ((high - low) * height) / 2));
  });
}

// Calls a function once, when an element is about to come into view.
function whenSeen(node, action) {
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      action();
    },
    { rootMargin: "300px" },
  );
  observer.observe(node);
}

// The picture of a sound. `audio` moves the playhead, and a click moves `audio`, unless `onregion` is given: then dragging
// marks a region, and calls it with (begin, end) in seconds. Returns the node, with `setRegion(begin, end)`.
export function soundView({ title, sound, spectrogram, seconds, audio, onregion = null }) {
  const canvas = element("canvas", { class: "wave", role: "img", "aria-label": `Waveform of ${title}` });
  const picture = element("img", { class: "spectrogram", alt: `Spectrogram of ${title}: seconds, and Hz on a logarithmic axis` });
  const head = element("div", { class: "playhead" });
  const mark = element("div", { class: "mark", hidden: true });
  const plot = element("div", { class: onregion ? "plot marks" : "plot", "aria-hidden": "true" }, mark, head);
  const view = element("div", { class: "view" }, canvas, picture, plot);
  whenSeen(view, async () => {
    const width = Math.min(WIDEST, Math.max(NARROWEST, Math.round(view.clientWidth)));
    picture.src = `${spectrogram}?width=${width}&height=${SPECTROGRAM_HEIGHT}`;
    try {
      const buffer = await decode(sound);
      drawWave(canvas, buffer);
      new ResizeObserver(() => drawWave(canvas, buffer)).observe(canvas);
    } catch {
      canvas.hidden = true; // the picture is no more than a help: the player tells why a sound is missing
    }
  });
  const place = (time) => `${100 * Math.min(1, Math.max(0, time / seconds))}%`;
  const moveHead = () => { head.style.left = place(audio.currentTime); };
  for (const name of ["timeupdate", "seeked", "play"]) audio.addEventListener(name, moveHead);
  const timeAt = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * seconds;
  };
  view.setRegion = (begin, end) => {
    mark.hidden = !(end > begin);
    mark.style.left = place(begin);
    mark.style.right = `${100 - parseFloat(place(end))}%`;
  };
  if (onregion) drag(plot, timeAt, (begin, end) => { view.setRegion(begin, end); onregion(begin, end); });
  else plot.addEventListener("click", (event) => seek(audio, timeAt(event)));
  return view;
}

function seek(audio, time) {
  const set = () => { audio.currentTime = time; };
  if (audio.readyState > 0) return set();
  audio.addEventListener("loadedmetadata", set, { once: true });
  audio.load();
  audio.preload = "metadata";
}

function drag(plot, timeAt, report) {
  let start = null;
  plot.addEventListener("pointerdown", (event) => {
    start = timeAt(event);
    plot.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  plot.addEventListener("pointermove", (event) => {
    if (start === null) return;
    const now = timeAt(event);
    report(Math.min(start, now), Math.max(start, now));
  });
  const stop = () => { start = null; };
  plot.addEventListener("pointerup", stop);
  plot.addEventListener("pointercancel", stop);
}

// 16-bit WAV of an AudioBuffer.
export function wav(buffer) {
  const channels = buffer.numberOfChannels;
  const bytes = 2 * channels * buffer.length;
  const view = new DataView(new ArrayBuffer(44 + bytes));
  const text = (offset, letters) => [...letters].forEach((letter, i) => view.setUint8(offset + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, channels, true);
  view.setUint32(24, buffer.sampleRate, true);
  view.setUint32(28, buffer.sampleRate * 2 * channels, true);
  view.setUint16(32, 2 * channels, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, bytes, true);
  for (let channel = 0; channel < channels; channel += 1) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < samples.length; i += 1) {
      const value = Math.max(-1, Math.min(1, samples[i]));
      view.setInt16(44 + 2 * (i * channels + channel), Math.round(32767 * value), true);
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

// Records from the microphone without the processing that browsers apply to speech. Returns a function that ends it and
// gives the sound as WAV.
export async function record() {
  if (!navigator.mediaDevices?.getUserMedia) throw new Error("This browser gives no microphone to this address");
  const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
  } catch (error) {
    throw new Error(`The microphone cannot be used (${error.message})`);
  }
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  const ended = new Promise((resolve) => recorder.addEventListener("stop", resolve, { once: true }));
  recorder.start();
  return async () => {
    recorder.stop();
    await ended;
    stream.getTracks().forEach((track) => track.stop());
    const data = await new Blob(parts).arrayBuffer();
    return wav(await new OfflineAudioContext(1, 1, DECODING_RATE).decodeAudioData(data));
  };
}
