// The page of the studio: connects gradio's forms with takes, sounds, story and comparison. See studio/page.py.

import { api } from "./api.js";
import { alertUser, announce, attempt, clearAlert, digits, present } from "./dom.js";
import { ComparePanel } from "./compare.js";
import { SourcePanel } from "./source.js";
import { StoryPanel } from "./story.js";
import { Takes } from "./takes.js";

const SEEDS = 2 ** 32;
const WARMING_MS = 2000;
const DOUBLE_CLICK_MS = 500;

class Studio {
  constructor() {
    const part = (id, make) => present(id).then(make);
    this.features = part("facts", (node) => new Set(node.dataset.features.split(" ").filter(Boolean)));
    this.takes = Promise.all([present("takes"), this.features]).then(([root, features]) => new Takes(this, root, features));
    this.source = Promise.all([present("sound"), this.features]).then(([root, features]) => new SourcePanel(root, features));
    this.story = part("story", (root) => new StoryPanel(root));
    part("compare", (root) => new ComparePanel(root));
    part("facts", () => this.showMachine());
    document.addEventListener("play", (event) => this.silenceOther(event.target), true);
    for (const name of ["dragover", "drop"]) window.addEventListener(name, keepPage);
  }

  // One sound at a time: the one that played before `player` pauses.
  silenceOther(player) {
    if (this.player !== player) this.player?.pause();
    this.player = player;
  }

  get isPlaying() {
    return Boolean(this.player && !this.player.paused);
  }

  // A form calls this with the names and values of its inputs.
  run(action, names, values) {
    attempt(async () => {
      const form = this.read(names, values);
      if (action === "makeFour" || action === "makeOne") await this.make(form, action === "makeFour" ? 4 : 1);
      else if (action === "story") await this.send((await this.story).settings(form));
      else await this.send((await this.source).settings(action, form));
    });
  }

  // The settings of a form; what is empty is left out. Throws for a seed that is no whole number.
  read(names, values) {
    const form = {};
    names.forEach((name, i) => {
      const value = typeof values[i] === "string" ? values[i].trim() : values[i];
      if (value !== "" && value !== null && value !== undefined) form[name] = value;
    });
    if (form.seed !== undefined && !/^\d{1,20}$/.test(form.seed)) {
      throw new Error(`The seed is “${form.seed}”; it must be a whole number of at most 20 digits, or empty`);
    }
    return form;
  }

  async make({ second_prompt: second, second_weight: weight, ...form }, count) {
    if (document.getElementById("prompt") && !form.prompt) throw new Error("Describe the music in a few words first");
    const prompt = second ? [{ text: form.prompt }, { text: second, weight }] : form.prompt;
    await this.send({ ...form, prompt, count });
  }

  async submit(settings) {
    await attempt(() => this.send(settings));
  }

  // Submits settings. The second click of a double click asks for nothing new.
  async send(settings) {
    const text = JSON.stringify(settings);
    const now = Date.now();
    if (text === this.sent?.text && now - this.sent.time < DOUBLE_CLICK_MS) return;
    this.sent = { text, time: now };
    const jobs = await api.submit(settings);
    announce(jobs.length === 1 ? "One take is in the queue" : `${jobs.length} takes are in the queue`);
    (await this.takes).add(jobs);
  }

  // Opens a take as "your sound", whose tab gradio may draw only now.
  openTake(take) {
    return attempt(async () => {
      document.querySelector('#tabs [role="tab"][data-tab-id="sound"]').click();
      const source = await this.source;
      source.openTake(take);
      document.getElementById("tabs").scrollIntoView({ block: "nearest" });
      source.begin.focus();
    });
  }

  drawSeed() {
    return String(Math.floor(Math.random() * SEEDS));
  }

  async setStoryLength(seconds) {
    (await this.story).setLength(seconds);
  }

  // The footer: what plays here, and how fast.
  async showMachine() {
    let info;
    try {
      info = await api.info();
    } catch (error) {
      alertUser(error.message);
      return;
    }
    const gigabytes = (bytes) => `${digits(bytes / 2 ** 30)} GB`;
    const items = [
      `${info.release} (${info.system}${info.distilled ? ", distilled" : ""}, ${info.model_hash})`,
      `${digits(info.parameters / 1e6)} million parameters`,
      `${info.sample_rate / 1000} kHz ${info.channels === 1 ? "mono" : "stereo"}`,
      info.memory_bytes ? `uses ${gigabytes(info.memory_bytes)} of ${gigabytes(info.machine_memory_bytes)} of memory` : null,
      info.real_time_factor ? `${digits(info.real_time_factor)} s of music per second` : "speed not measured yet",
      info.warm ? "ready" : "warming up",
      `melody_jax ${info.version}`,
    ];
    document.getElementById("facts").textContent = items.filter(Boolean).join(" · ");
    if (!info.warm) setTimeout(() => this.showMachine(), WARMING_MS);
  }
}

// A file that is dropped beside its place would open in place of the page.
function keepPage(event) {
  if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
}

window.studio = new Studio();
window.addEventListener("unhandledrejection", (event) => alertUser(event.reason?.message ?? "Something failed"));
window.addEventListener("keydown", (event) => { if (event.key === "Escape") clearAlert(); });
