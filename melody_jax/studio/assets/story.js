// The story: prompts that take over at their times, as rows below a timeline.

import { button, digits, element } from "./dom.js";

const FIRST = [[0, "a calm solo piano piece"], [15, "driving techno at 130 bpm"]];

export class StoryPanel {
  constructor(root) {
    this.seconds = Number(root.dataset.seconds);
    this.line = element("ol", { class: "timeline", "aria-label": "Timeline" });
    this.rows = element("div", { class: "scenes" });
    root.append(this.line, this.rows, button("Add a scene", () => this.add(this.nextTime(), "", true)));
    FIRST.forEach(([time, prompt]) => this.add(time, prompt));
  }

  setLength(seconds) {
    this.seconds = Number(seconds);
    this.draw();
  }

  nextTime() {
    const last = Math.max(0, ...this.scenes().map((scene) => scene.at));
    return Math.round(5 * (last + this.seconds)) / 10;
  }

  add(time, prompt, focus = false) {
    const isFirst = !this.rows.children.length;
    const at = element("input", { type: "number", min: 0, step: 0.1, value: time, readonly: isFirst });
    const text = element("input", { type: "text", value: prompt, maxlength: 1000 });
    const remove = button("Remove", () => {
      row.remove();
      this.draw();
    }, { hidden: isFirst });
    const row = element(
      "div",
      { class: "scene", role: "group" },
      element("label", {}, "At, s ", at),
      element("label", { class: "wide" }, "Prompt ", text),
      remove,
    );
    for (const input of [at, text]) input.addEventListener("input", () => this.draw());
    this.rows.append(row);
    this.draw();
    if (focus) text.focus();
  }

  // The scenes in the order of their times.
  scenes() {
    return [...this.rows.children]
      .map((row) => {
        const [at, text] = row.querySelectorAll("input");
        return { at: Number(at.value), prompt: text.value.trim() };
      })
      .sort((a, b) => a.at - b.at);
  }

  draw() {
    [...this.rows.children].forEach((row, i) => row.setAttribute("aria-label", `Scene ${i + 1}`));
    const scenes = this.scenes();
    this.line.replaceChildren(...scenes.map((scene, i) => {
      const end = Math.min(this.seconds, scenes[i + 1]?.at ?? this.seconds);
      const share = Math.max(0, end - scene.at);
      const item = element("li", {}, element("b", {}, `${digits(scene.at)} s`), ` ${scene.prompt || "no prompt yet"}`);
      item.style.flexGrow = share;
      item.hidden = share === 0;
      return item;
    }));
  }

  // The settings of the story. Throws if a scene has no prompt, or does not begin after the one before it.
  settings({ seconds, ...shared }) {
    const [first, ...later] = this.scenes();
    if (!first.prompt || later.some((scene) => !scene.prompt)) throw new Error("Every scene needs a prompt");
    if (first.at < 0) throw new Error(`A scene begins at ${first.at} s; the first one begins at 0 s`);
    const again = later.find((scene, i) => scene.at === [first, ...later][i].at);
    if (again) throw new Error(`Two scenes begin at ${again.at} s; give one of them another time`);
    return { ...shared, seconds, prompt: first.prompt, story: later };
  }
}
