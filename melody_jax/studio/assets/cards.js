// Cards: a take with its player, and a job while it is made.

import { api, urls } from "./api.js";
import { announce, attempt, button, clock, dateText, digits, element } from "./dom.js";
import { soundView } from "./sound.js";

const KINDS = {
  prompt: "from a prompt",
  continuation: "continuation",
  mend: "mended",
  variation: "variation",
  restyle: "same tokens, another prompt",
};
const MORE_SECONDS = 10;
const FORMATS = ["flac", "wav", "ogg"];
// Changes that make a take a source of another one: what only applied to its own making is left out.
const AS_SOURCE = { regions: null, story: null, melody: null, strength: null, keep_tokens: null, seed: null };

// A prompt of settings as text.
export function promptText(prompt) {
  if (!prompt) return "";
  if (typeof prompt === "string") return prompt;
  return prompt.map((part) => `${part.text || "a sound"} × ${digits(part.weight, 2)}`).join(" + ");
}

function isEmpty(value) {
  return value === null || value === "" || value === false || (Array.isArray(value) && !value.length);
}

function settingText(name, value) {
  if (name === "prompt") return promptText(value);
  if (name === "story") return value.map((scene) => `${digits(scene.at, 2)} s: ${promptText(scene.prompt)}`).join("; ");
  if (name === "regions") return value.map(([begin, end]) => `${digits(begin, 3)} to ${digits(end, 3)} s`).join(", ");
  if (typeof value === "object") return "a sound";
  return String(value);
}

// A word as a shell reads it.
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}

function settingsTable(take) {
  const rows = Object.entries({ ...take.settings, seed: take.seed })
    .filter(([, value]) => !isEmpty(value))
    .flatMap(([name, value]) => [
      element("dt", {}, name.replaceAll("_", " ")),
      element("dd", {}, settingText(name, value)),
    ]);
  rows.push(element("dt", {}, "model"), element("dd", {}, `${take.release}, ${take.system}, ${take.model_hash}`));
  const command = take.command?.map(quoted).join(" ");
  return element(
    "details",
    { class: "settings" },
    element("summary", {}, "Settings"),
    element("dl", {}, ...rows),
    command ? element("code", { tabindex: 0, "aria-label": "Command that makes it again" }, command) : null,
  );
}

function facts(take) {
  const items = [
    `${digits(take.seconds)} s`,
    KINDS[take.kind],
    `seed ${take.seed}`,
    take.similarity === null ? null : `cosine with the prompt ${take.similarity.toFixed(3)}`,
    `made in ${digits(take.seconds_taken)} s`,
    take.release + (take.distilled ? " (distilled)" : ""),
    dateText(take.created),
  ];
  return element("ul", { class: "facts" }, ...items.filter(Boolean).map((text) => element("li", {}, text)));
}

// The changes of "same again with ...", by action.
function againSettings(take) {
  const scenes = take.settings.story ?? [];
  const prompt = scenes.length ? scenes[scenes.length - 1].prompt : null;
  const last = typeof prompt === "string" ? { prompt } : {};
  const from = { from_take: take.id };
  return {
    seed: () => ({ ...from, seed: null }),
    more: () => ({ ...from, ...AS_SOURCE, ...last, source: { take: take.id }, seconds: take.seconds + MORE_SECONDS }),
    vary: (strength) => ({ ...from, ...AS_SOURCE, source: { take: take.id }, seconds: null, strength }),
    restyle: (prompt) => ({ parent: take.id, source: { take: take.id }, keep_tokens: true, prompt }),
  };
}

// A button that opens a small form below the buttons; submitting the form closes it.
function opener(label, form) {
  const show = (shown) => {
    form.hidden = !shown;
    control.setAttribute("aria-expanded", String(shown));
    if (shown) form.querySelector("input").focus();
    else control.focus();
  };
  const control = button(label, () => show(form.hidden), { "aria-expanded": "false" });
  form.addEventListener("submit", () => show(false));
  return control;
}

function variationForm(submit) {
  const shown = element("output", {}, "0.5");
  const input = element("input", { type: "range", min: 0.05, max: 0.95, step: 0.05, value: 0.5 });
  input.addEventListener("input", () => { shown.textContent = input.value; });
  return form("Strength", input, "Make the variation", () => submit(Number(input.value)), shown);
}

function promptForm(submit) {
  const input = element("input", { type: "text", title: "a few words", required: true, pattern: ".*\\S.*", maxlength: 1000 });
  return form("Other prompt, same tokens", input, "Make it", () => submit(input.value.trim()));
}

function form(label, input, action, submit, shown = null) {
  const node = element(
    "form",
    { class: "again", hidden: true },
    element("label", {}, element("span", {}, label), input),
    shown, // outside of the label, which would name it instead of the input
    element("button", { type: "submit", class: "button" }, action),
  );
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  return node;
}

function favouriteButton(take) {
  const label = (favourite) => (favourite ? "★ Favourite" : "☆ Favourite");
  const control = button(label(take.favourite), () => attempt(async () => {
    const changed = await api.setFavourite(take.id, !take.favourite);
    take.favourite = changed.favourite;
    control.textContent = label(take.favourite);
    control.setAttribute("aria-pressed", String(take.favourite));
  }, control), { "aria-pressed": String(take.favourite) });
  return control;
}

function downloads(take) {
  const links = FORMATS.map((suffix) => element(
    "a",
    { href: urls.download(take.id, suffix), download: "", "aria-label": `Download ${take.title} as ${suffix.toUpperCase()}` },
    suffix.toUpperCase(),
  ));
  return element("span", { class: "downloads" }, "Download ", ...links);
}

function removeButton(take, ondelete) {
  const control = button("Delete", () => {
    if (!window.confirm(`Delete “${take.title}”, seed ${take.seed}, for good?`)) return;
    attempt(async () => {
      await api.remove(take.id).finally(ondelete);
      announce("The take is deleted");
    }, control);
  });
  return control;
}

// The card of a take. `studio` submits requests and opens sounds; `features` are what the system can make; `ondelete` is
// called after the take's deletion, also if it was deleted already.
export function takeCard(take, studio, features, ondelete) {
  const audio = element("audio", { controls: true, preload: "metadata", src: urls.sound(take), "aria-label": `Play ${take.title}` });
  const again = againSettings(take);
  const submit = (settings) => studio.submit(settings);
  const variation = variationForm((strength) => submit(again.vary(strength)));
  const restyle = promptForm((prompt) => submit(again.restyle(prompt)));
  const can = (feature) => features.has(feature);
  const controls = [
    button("Another seed", () => submit(again.seed())),
    can("variation") ? opener("Variation …", variation) : null,
    can("continuation") ? button(`Continue ${MORE_SECONDS} s`, () => submit(again.more())) : null,
    can("restyle") ? opener("Other prompt …", restyle) : null,
    can("mend") ? button("Mend …", () => studio.openTake(take)) : null,
  ];
  return element(
    "article",
    { class: "card take", "data-take": take.id, "aria-label": `${take.title}, seed ${take.seed}` },
    element("header", {}, element("h3", {}, take.title), favouriteButton(take)),
    soundView({ title: take.title, sound: urls.sound(take), spectrogram: urls.spectrogram(take.id), seconds: take.seconds, audio }),
    audio,
    facts(take),
    element("div", { class: "buttons", role: "group", "aria-label": "Same again with …" }, ...controls.filter(Boolean)),
    variation,
    restyle,
    settingsTable(take),
    element("div", { class: "bottom" }, downloads(take), removeButton(take, ondelete)),
  );
}

// The player goes on where the stream of the job is, which pauses then, as there is one sound at a time.
export function takeOver(audio, stream) {
  const goOn = () => {
    if (stream.paused) return;
    audio.currentTime = stream.currentTime;
    audio.addEventListener("seeked", () => { if (!stream.paused) audio.play(); }, { once: true });
  };
  audio.preload = "auto";
  if (audio.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA) goOn();
  else audio.addEventListener("canplay", goOn, { once: true });
}

function stateText(job) {
  if (job.state === "queued") return job.position === 1 ? "Next in the queue" : `Place ${job.position} in the queue`;
  if (job.state === "cancelled") return "Cancelled";
  if (job.state === "failed") return `Failed: ${job.error}`;
  if (job.state === "done") return "Ready; its take is not on this page";
  if (job.state === "unknown") return "The studio was started again, or this job ended long ago; if its take is missing, make it again";
  const total = job.windows_total ? `, ${job.windows_done} of ${job.windows_total} windows` : "";
  const left = job.seconds_left === null ? "" : `, about ${Math.ceil(job.seconds_left)} s left`;
  return `Being made${total}${left}`;
}

// The card of a job: `node`; `update(job)` shows its state, and `stream` plays while it is made. `onplay` is called when
// it does, `onend` with the job when it is cancelled, `onshow` when its take is to be shown.
export function jobCard(first, { onplay, onend, onshow }) {
  const stream = new Audio();
  stream.preload = "none";
  const state = element("p", { class: "state" });
  const bar = element("progress", { max: 1, "aria-label": `Progress of ${first.title}` });
  const time = element("span", { class: "time" });
  const listen = button("Listen", () => (stream.paused ? play() : stream.pause()), { hidden: true });
  const play = () => attempt(async () => {
    if (!stream.src) stream.src = urls.stream(first.id);
    await stream.play().catch((error) => { if (error.name !== "AbortError") throw error; }); // paused before it began
  });
  stream.addEventListener("play", () => onplay(stream));
  for (const name of ["play", "pause", "ended"]) {
    stream.addEventListener(name, () => { listen.textContent = stream.paused ? "Listen" : "Pause"; });
  }
  stream.addEventListener("timeupdate", () => { time.textContent = clock(stream.currentTime); });
  const cancel = button("Cancel", () => attempt(async () => onend(await api.cancel(first.id)), cancel), {
    "aria-label": `Cancel ${first.title}`,
  });
  const notes = first.notes.map((note) => element("p", { class: "note" }, note));
  const node = element(
    "article",
    { class: "card job", "data-job": first.id, "aria-label": `In the making: ${first.title}` },
    element("header", {}, element("h3", {}, first.title), listen, time, cancel),
    bar,
    state,
    ...notes,
  );
  const close = () => {
    stream.pause();
    node.remove();
  };
  const end = (isDone) => {
    const hadFocus = document.activeElement === cancel;
    const closing = button("Close", close, { "aria-label": `Close ${first.title}` });
    bar.hidden = true;
    cancel.replaceWith(...(isDone ? [button("Show", onshow)] : []), closing);
    if (hadFocus) closing.focus();
    if (isDone) return;
    stream.pause();
    stream.removeAttribute("src");
    time.hidden = true;
  };
  const update = (job) => {
    const isNews = node.dataset.state !== job.state;
    node.dataset.state = job.state;
    state.textContent = stateText(job);
    listen.hidden = job.state !== "running" && (job.state !== "done" || !stream.src);
    bar.value = job.windows_total ? job.windows_done / job.windows_total : 0;
    if (isNews && job.state !== "queued" && job.state !== "running") end(job.state === "done");
  };
  return { node, update, stream, play };
}
