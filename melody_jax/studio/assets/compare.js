// Two takes, blind: which one is better? The studio stores the votes.

import { api, urls } from "./api.js";
import { announce, attempt, button, element } from "./dom.js";
import { promptText } from "./cards.js";

const CHOICES = [["a", "A is better"], ["tie", "No difference"], ["b", "B is better"]];
const RECENT = 100;

// A number of [0, count).
function draw(count) {
  return Math.floor(Math.random() * count);
}

// Two different takes in random order: of one prompt if there are such, otherwise any; null for less than two.
export function drawPair(takes) {
  const groups = new Map();
  for (const take of takes) {
    const prompt = promptText(take.settings.prompt);
    groups.set(prompt, [...(groups.get(prompt) ?? []), take]);
  }
  const pairs = [...groups.values()].filter((group) => group.length > 1);
  const group = pairs.length ? pairs[draw(pairs.length)] : takes;
  if (group.length < 2) return null;
  const first = draw(group.length);
  const second = (first + 1 + draw(group.length - 1)) % group.length;
  return [group[first], group[second]];
}

export class ComparePanel {
  constructor(root) {
    this.desk = element("div", { class: "pair" });
    this.count = 0;
    root.append(
      element("p", {}, "Two takes in random order, of one prompt where there are such. Listen to them, then vote."),
      button("Draw two takes", () => this.draw(), { class: "button primary" }),
      this.desk,
    );
  }

  async draw() {
    await attempt(async () => {
      const { takes } = await api.takes(RECENT, null, false);
      const pair = drawPair(takes);
      if (!pair) throw new Error("Two takes are needed to compare; make some first");
      this.show(pair);
    });
  }

  show(pair) {
    const players = pair.map((take, i) => {
      const name = "AB"[i];
      const audio = element("audio", { controls: true, preload: "none", src: urls.sound(take), "aria-label": `Play ${name}` });
      return element("div", { class: "card blind" }, element("h3", {}, name), audio);
    });
    const votes = CHOICES.map(([choice, label]) => button(label, () => this.vote(pair, choice)));
    this.result = element("div", { class: "result" });
    this.buttons = element("div", { class: "buttons", role: "group", "aria-label": "Your vote" }, ...votes);
    const prompts = [...new Set(pair.map((take) => promptText(take.settings.prompt)))].filter(Boolean);
    const title = prompts.length === 1 ? [element("p", {}, `Prompt: ${prompts[0]}`)] : [];
    this.desk.replaceChildren(...title, ...players, this.buttons, this.result);
    announce("Two takes are ready to compare");
  }

  async vote([a, b], choice) {
    await attempt(async () => {
      await api.vote(a.id, b.id, choice);
      this.count += 1;
      this.buttons.remove();
      const line = (name, take) => element("li", {}, `${name}: ${take.title}, seed ${take.seed}, ${take.release}`);
      const next = button("Next two", () => this.draw(), { class: "button primary" });
      this.result.replaceChildren(
        element("p", {}, `Thank you; ${this.count === 1 ? "one vote" : `${this.count} votes`} on this visit.`),
        element("ul", {}, line("A", a), line("B", b)),
        next,
      );
      next.focus();
      announce("Your vote is stored");
    }, this.buttons);
  }
}
