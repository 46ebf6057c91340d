// "Your sound": a file, a recording or a take, its picture with a region, and what is made from it.

import { api, urls } from "./api.js";
import { announce, attempt, button, digits, element } from "./dom.js";
import { record, soundView } from "./sound.js";

const STEP = 0.01;

export class SourcePanel {
  constructor(root, features) {
    this.features = features;
    this.current = null; // {reference, title, seconds} of the sound
    this.begin = element("input", { type: "number", min: 0, step: STEP, value: 0, onchange: () => this.typed() });
    this.end = element("input", { type: "number", min: 0, step: STEP, value: 0, onchange: () => this.typed() });
    this.desk = element("div", { class: "source" });
    const file = element("input", { type: "file", accept: "audio/*,.flac,.ogg,.wav,.mp3,.aiff", id: "sound-file" });
    file.addEventListener("change", () => this.take(file.files[0], file));
    this.recordButton = button("● Record", () => this.toggleRecording());
    const drop = element(
      "div",
      { class: "drop" },
      element("label", { for: "sound-file" }, "Drop a sound file here, or choose one"),
      file,
      this.recordButton,
    );
    for (const name of ["dragover", "dragenter"]) drop.addEventListener(name, () => drop.classList.add("over"));
    for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => this.take(event.dataTransfer.files[0])); // see keepPage of page.js
    this.progress = element("p", { class: "state" });
    root.append(drop, this.progress, this.desk);
  }

  // Uploads a file of the user.
  async take(file, control = null) {
    if (!file) return;
    const text = `Reading ${file.name} …`;
    announce(text);
    this.progress.textContent = text;
    await attempt(async () => {
      const uploaded = await api.upload(file);
      this.open({
        reference: { upload: uploaded.upload },
        title: file.name,
        seconds: uploaded.seconds,
        sound: urls.uploadedSound(uploaded.upload),
        spectrogram: urls.uploadedSpectrogram(uploaded.upload),
        notes: uploaded.notes,
      });
    }, control);
    this.progress.textContent = "";
    if (control) control.value = "";
  }

  async toggleRecording() {
    if (this.stopRecording) {
      const stop = this.stopRecording;
      this.stopRecording = null;
      this.recordButton.textContent = "● Record";
      await attempt(async () => {
        const sound = await stop();
        await this.take(new File([sound], "recording.wav"));
      }, this.recordButton);
      return;
    }
    await attempt(async () => {
      this.stopRecording = await record();
      this.recordButton.textContent = "■ Stop recording";
      announce("Recording");
    }, this.recordButton);
  }

  openTake(take) {
    this.open({
      reference: { take: take.id },
      title: `${take.title}, seed ${take.seed}`,
      seconds: take.seconds,
      sound: urls.sound(take),
      spectrogram: urls.spectrogram(take.id),
      notes: [],
    });
  }

  open(source) {
    this.current = source;
    const audio = element("audio", { controls: true, preload: "metadata", src: source.sound, "aria-label": `Play ${source.title}` });
    this.view = soundView({
      ...source,
      audio,
      onregion: this.features.has("mend") ? (begin, end) => this.setRegion(begin, end) : null,
    });
    this.begin.max = source.seconds;
    this.end.max = source.seconds;
    this.setRegion(0, 0);
    const region = element(
      "fieldset",
      { class: "region" },
      element("legend", {}, "Region to mend: drag over the picture, or type"),
      element("label", {}, "Begin, s ", this.begin),
      element("label", {}, "End, s ", this.end),
      button("Clear", () => {
        this.setRegion(0, 0);
        this.typed();
      }),
    );
    this.desk.replaceChildren(
      element("h3", {}, source.title),
      element("p", { class: "state" }, `${digits(source.seconds, 2)} s`),
      this.view,
      audio,
      ...source.notes.map((note) => element("p", { class: "note" }, note)),
      ...(this.features.has("mend") ? [region] : []),
    );
    announce(`Opened: ${source.title}, ${digits(source.seconds)} seconds`);
  }

  setRegion(begin, end) {
    this.begin.value = digits(begin, 2);
    this.end.value = digits(end, 2);
  }

  // Shows a region that was typed, without what is outside of the sound.
  typed() {
    const [begin, end] = [this.begin, this.end].map((input) => Math.min(Math.max(0, Number(input.value)), this.current.seconds));
    this.setRegion(begin, end);
    this.view.setRegion(begin, end);
  }

  // The sound as the API names it. Throws unless there is one.
  reference() {
    if (!this.current) throw new Error("Choose or record a sound first, or press “Mend …” on a take");
    return this.current.reference;
  }

  region() {
    const begin = Number(this.begin.value);
    const end = Number(this.end.value);
    if (!(end > begin)) throw new Error("Mark the region first: drag over the picture, or type its begin and end");
    return [begin, Math.min(end, this.current.seconds)];
  }

  // The settings of an action, from the settings of the forms.
  settings(action, { prompt, extension, strength, weight, ...shared }) {
    const reference = this.reference();
    const text = prompt ? { prompt } : {};
    if (action === "mend") return { ...shared, ...text, source: reference, regions: [this.region()] };
    if (action === "continue") {
      return { ...shared, ...text, source: reference, seconds: this.current.seconds + extension };
    }
    if (action === "vary") return { ...shared, ...text, source: reference, strength };
    if (action === "hum") return { ...shared, ...text, melody: reference, count: 4 };
    const parts = prompt ? [{ text: prompt }, { audio: reference, weight }] : [{ audio: reference }];
    return { ...shared, prompt: parts, count: 4 };
  }
}
