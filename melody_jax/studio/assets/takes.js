// The takes of the project, newest first in pages, and the jobs that are being made, above them.

import { api, urls } from "./api.js";
import { alertUser, announce, attempt, button, clearAlert, element } from "./dom.js";
import { jobCard, takeCard, takeOver } from "./cards.js";

const PAGE_SIZE = 12;
const POLL_MS = 500;
const FINAL = ["done", "failed", "cancelled"];

export class Takes {
  // studio: see page.js; root: the section of the page; features: what the system can make (features.py).
  constructor(studio, root, features) {
    this.studio = studio;
    this.features = features;
    this.jobs = new Map(); // id -> {card, job, playWhenRunning}
    this.ended = new Map(); // id of a take -> the same, of jobs whose takes have not been shown
    this.begins = [null]; // `before` of the pages up to the one that is shown
    this.next = null;
    this.shown = Promise.resolve(); // one page is read after the other
    this.favourites = element("input", { type: "checkbox", onchange: () => this.turn([null]) });
    this.listening = element("input", { type: "checkbox", checked: true });
    this.jobList = element("div", { id: "jobs" });
    this.list = element("div", { id: "take-list" });
    this.newer = button("Newer takes", () => this.turn(this.begins.slice(0, -1)));
    this.older = button("Older takes", () => this.turn([...this.begins, this.next]));
    root.append(
      element(
        "header",
        { id: "takes-header" },
        element("h2", { tabindex: -1 }, "Takes"),
        element("label", {}, this.favourites, " Favourites only"),
        element("label", {}, this.listening, " Play while it is made"),
        element("a", { class: "button", href: urls.archive, download: "" }, "Export all as zip"),
      ),
      this.jobList,
      this.list,
      element("nav", { id: "pages", "aria-label": "Pages of takes" }, this.newer, this.older),
    );
    this.turn([null]);
    this.follow();
    window.addEventListener("focus", () => { // another window may have changed the takes, or have made jobs
      this.catchUp();
      this.follow();
    });
  }

  // Shows the page that begins after the last of `begins`.
  turn(begins) {
    return attempt(() => this.show(begins));
  }

  // As `turn`, by default the same page again; throws if the studio does not answer.
  show(begins = null) {
    this.shown = this.shown.catch(() => null).then(() => this.load(begins ?? this.begins));
    return this.shown;
  }

  async load(begins) {
    const page = await api.takes(PAGE_SIZE, begins[begins.length - 1], this.favourites.checked);
    if (!page.takes.length && begins.length > 1) return this.load(begins.slice(0, -1));
    const turned = begins.length !== this.begins.length;
    this.begins = begins;
    this.next = page.next;
    this.fill(page.takes);
    this.newer.disabled = begins.length === 1;
    this.older.disabled = this.next === null;
    this.handOver();
    if (!turned) return;
    announce(`Page ${begins.length} of the takes`);
    this.list.scrollIntoView({ block: "nearest" });
  }

  // Cards that are there stay, with what they play and what is open in them.
  fill(takes) {
    const ids = new Set(takes.map((take) => take.id));
    for (const node of [...this.list.children]) {
      if (!ids.has(node.dataset.take)) node.remove();
    }
    takes.forEach((take, i) => {
      if (!this.cardOf(take.id)) this.list.insertBefore(this.card(take), this.list.children[i] ?? null);
    });
    if (!takes.length) this.list.append(element("p", { class: "empty" }, this.emptyText()));
  }

  cardOf(takeId) {
    return this.list.querySelector(`[data-take="${takeId}"]`);
  }

  emptyText() {
    return this.favourites.checked ? "No favourites yet." : "No takes yet. Describe some music and make four.";
  }

  card(take) {
    const card = takeCard(take, this.studio, this.features, async () => {
      const neighbour = card.nextElementSibling ?? card.previousElementSibling;
      await this.show();
      if (card.isConnected) return;
      const next = neighbour?.isConnected ? neighbour.querySelector("button") : null;
      (next ?? document.querySelector("#takes-header h2")).focus();
    });
    return card;
  }

  // Adds the cards of submitted jobs; the first plays as it is made if nothing else plays.
  add(jobs) {
    jobs.forEach((job) => this.addJob(job));
    const waits = [...this.jobs.values()].some((entry) => entry.playWhenRunning);
    if (!waits && !this.studio.isPlaying) this.jobs.get(jobs[0].id).playWhenRunning = true;
    this.follow();
  }

  addJob(job) {
    const card = jobCard(job, {
      onplay: (stream) => this.studio.silenceOther(stream),
      onend: (changed) => this.update(changed),
      onshow: () => this.showAll(),
    });
    this.jobs.set(job.id, { card, job, playWhenRunning: false });
    this.jobList.append(card.node);
    this.update(job);
  }

  showAll() {
    this.favourites.checked = false;
    return this.turn([null]);
  }

  // Whether a sound that waits for its turn begins now.
  mayPlay(entry) {
    const may = entry.playWhenRunning && this.listening.checked && !this.studio.isPlaying;
    entry.playWhenRunning = false;
    return may;
  }

  update(job) {
    const entry = this.jobs.get(job.id);
    if (!entry) return;
    entry.job = job;
    if (job.state === "done") {
      this.finish(entry);
      return;
    }
    entry.card.update(job);
    if (job.state === "running") {
      if (this.mayPlay(entry)) entry.card.play();
      this.sayProgress(job);
    }
    if (!FINAL.includes(job.state)) return;
    this.jobs.delete(job.id);
    announce(job.state === "cancelled" ? `Cancelled: ${job.title}` : `Failed: ${job.error}`);
  }

  sayProgress(job) {
    const left = job.seconds_left === null ? "" : `, about ${Math.ceil(job.seconds_left)} seconds left`;
    announce(`${job.title}: ${job.windows_done} of ${job.windows_total} windows${left}`, true);
  }

  async finish(entry) {
    this.jobs.delete(entry.job.id);
    this.ended.set(entry.job.take_id, entry);
    await this.catchUp();
    announce(`Ready: ${this.cardOf(entry.job.take_id)?.getAttribute("aria-label") ?? entry.job.title}`);
    this.studio.showMachine();
  }

  // The cards of jobs that have ended give way to those of their takes, which play on, or say that they are elsewhere.
  handOver() {
    for (const [takeId, entry] of this.ended) {
      const audio = this.cardOf(takeId)?.querySelector("audio");
      if (!audio) {
        entry.playWhenRunning = false;
        entry.card.update(entry.job);
        continue;
      }
      this.ended.delete(takeId);
      if (!entry.card.stream.paused) takeOver(audio, entry.card.stream);
      else if (this.mayPlay(entry)) audio.play(); // the job was done before it was seen to run
      if (entry.card.node.contains(document.activeElement)) audio.focus();
      entry.card.node.remove();
    }
  }

  // Reads the page again. Unlike what a user asks for, it leaves an error of before on the screen.
  async catchUp() {
    try {
      await this.show();
    } catch (error) {
      alertUser(error.message);
    }
  }

  // Asks for the jobs until none is left; jobs of an earlier visit of this page are shown again.
  async follow() {
    if (this.following) return;
    this.following = true;
    try {
      do {
        const jobs = await api.jobs();
        if (this.isLost) this.foundAgain();
        for (const job of jobs) {
          if (!this.jobs.has(job.id) && !FINAL.includes(job.state)) this.addJob(job);
          else this.update(job);
        }
        this.endForgotten(jobs);
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      } while (this.jobs.size);
    } catch (error) {
      if (!this.isLost) alertUser(error.message);
      this.isLost = true;
      setTimeout(() => this.follow(), 10 * POLL_MS);
    } finally {
      this.following = false;
    }
  }

  // The studio answers again.
  foundAgain() {
    this.isLost = false;
    clearAlert();
    this.catchUp();
    this.studio.showMachine();
  }

  // A studio that was started again has forgotten its jobs.
  endForgotten(jobs) {
    const present = new Set(jobs.map((job) => job.id));
    const forgotten = [...this.jobs].filter(([id]) => !present.has(id));
    for (const [id, entry] of forgotten) {
      this.jobs.delete(id);
      entry.card.update({ ...entry.job, state: "unknown" });
      announce(`Unknown to the studio: ${entry.job.title}`);
    }
    if (forgotten.length) this.catchUp();
  }
}
