// The takes of the project, newest first in pages, and the jobs that are being made, above them.

import { api, urls } from "./api.js";
import { announce, attempt, button, element } from "./dom.js";
import { jobCard, takeCard } from "./cards.js";

const PAGE_SIZE = 12;
const POLL_MS = 500;
const FINAL = ["done", "failed", "cancelled"];

export class Takes {
  // studio: see page.js; root: the section of the page; features: what the system can make (features.py).
  constructor(studio, root, features) {
    this.studio = studio;
    this.features = features;
    this.jobs = new Map();
    this.begins = [null]; // `before` of the pages up to the one that is shown
    this.next = null;
    this.favourites = element("input", { type: "checkbox", onchange: () => this.show([null]) });
    this.listening = element("input", { type: "checkbox", checked: true });
    this.jobList = element("div", { id: "jobs" });
    this.list = element("div", { id: "take-list" });
    this.newer = button("Newer takes", () => this.show(this.begins.slice(0, -1)));
    this.older = button("Older takes", () => this.show([...this.begins, this.next]));
    root.append(
      element(
        "header",
        { id: "takes-header" },
        element("h2", {}, "Takes"),
        element("label", {}, this.favourites, " Favourites only"),
        element("label", {}, this.listening, " Play while it is made"),
        element("a", { class: "button", href: urls.archive, download: "" }, "Export all as zip"),
      ),
      this.jobList,
      this.list,
      element("nav", { id: "pages", "aria-label": "Pages of takes" }, this.newer, this.older),
    );
    this.show([null]);
    this.follow();
  }

  // Shows the page that begins after the last of `begins`.
  async show(begins) {
    await attempt(async () => {
      const page = await api.takes(PAGE_SIZE, begins[begins.length - 1], this.favourites.checked);
      const turned = begins.length !== this.begins.length;
      this.begins = begins;
      this.next = page.next;
      this.list.replaceChildren(...page.takes.map((take) => this.card(take)));
      if (!page.takes.length) this.list.append(element("p", { class: "empty" }, this.emptyText()));
      this.newer.disabled = begins.length === 1;
      this.older.disabled = this.next === null;
      if (turned) {
        announce(`Page ${begins.length} of the takes`);
        this.list.scrollIntoView({ block: "nearest" });
      }
    });
  }

  emptyText() {
    return this.favourites.checked ? "No favourites yet." : "No takes yet. Describe some music and make four.";
  }

  card(take, stream = null) {
    const card = takeCard(take, this.studio, this.features, () => {
      card.remove();
      this.studio.removed(take);
    }, stream);
    return card;
  }

  // Adds the cards of submitted jobs; the first plays as it is made if nothing else plays.
  add(jobs) {
    jobs.forEach((job) => this.addJob(job));
    const silent = ![...document.querySelectorAll("audio")].some((audio) => !audio.paused);
    const busy = [...this.jobs.values()].some((entry) => entry.playWhenRunning || !entry.card.stream.paused);
    if (this.listening.checked && silent && !busy) this.jobs.get(jobs[0].id).playWhenRunning = true;
    this.follow();
  }

  addJob(job) {
    const end = (changed) => this.update(changed);
    const entry = { card: jobCard(job, end), playWhenRunning: false, state: "" };
    this.jobs.set(job.id, entry);
    this.jobList.append(entry.card.node);
    this.update(job);
  }

  update(job) {
    const entry = this.jobs.get(job.id);
    if (!entry) return;
    entry.card.update(job);
    if (job.state === "running" && entry.playWhenRunning) {
      entry.playWhenRunning = false;
      entry.card.play();
    }
    if (job.state === "running") this.sayProgress(job);
    if (!FINAL.includes(job.state)) return;
    this.jobs.delete(job.id);
    if (job.state === "done") this.finish(job, entry);
    else announce(job.state === "cancelled" ? `Cancelled: ${job.title}` : `Failed: ${job.error}`);
  }

  sayProgress(job) {
    const left = job.seconds_left === null ? "" : `, about ${Math.ceil(job.seconds_left)} seconds left`;
    announce(`${job.title}: ${job.windows_done} of ${job.windows_total} windows${left}`, true);
  }

  async finish(job, entry) {
    await attempt(async () => {
      const take = await api.take(job.take_id);
      if (this.begins.length === 1 && !this.favourites.checked) {
        this.list.querySelector(".empty")?.remove();
        const card = this.card(take, entry.card.stream.paused ? null : entry.card.stream);
        this.list.prepend(card);
        this.trim();
        // The job was done before it was seen to run.
        if (entry.playWhenRunning) await card.querySelector("audio").play();
      }
      announce(`Ready: ${take.title}, seed ${take.seed}`);
      this.studio.ready(take);
    });
    entry.card.node.remove();
  }

  // Takes beyond a page are on the next one.
  trim() {
    const cards = [...this.list.children];
    if (cards.length <= PAGE_SIZE) return;
    cards.slice(PAGE_SIZE).forEach((card) => card.remove());
    this.refreshNext();
  }

  async refreshNext() {
    const page = await api.takes(PAGE_SIZE, null, false);
    this.next = page.next;
    this.older.disabled = this.next === null;
  }

  // Asks for the jobs until none is left; jobs of an earlier visit of this page are shown again.
  async follow() {
    if (this.following) return;
    this.following = true;
    try {
      do {
        const jobs = await api.jobs();
        for (const job of jobs) {
          if (!this.jobs.has(job.id) && !FINAL.includes(job.state)) this.addJob(job);
          else this.update(job);
        }
        this.closeForgotten(jobs);
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      } while (this.jobs.size);
    } catch (error) {
      await attempt(() => { throw error; });
      setTimeout(() => this.follow(), 10 * POLL_MS);
    } finally {
      this.following = false;
    }
  }

  // A studio that was started again has forgotten its jobs.
  closeForgotten(jobs) {
    const present = new Set(jobs.map((job) => job.id));
    for (const [id, entry] of this.jobs) {
      if (present.has(id)) continue;
      this.jobs.delete(id);
      entry.card.node.remove();
    }
  }
}
