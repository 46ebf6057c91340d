// Elements of the page, texts of numbers, and messages. Texts become text nodes: nothing is ever parsed as HTML.

// A new element. Attributes whose names begin with "on" are listeners; true, false and null set or leave out others.
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", class: "button", onclick, ...attributes }, label);
}

// The element of an id, as soon as it is in the document: gradio draws its components later than the scripts run.
export function present(id) {
  return new Promise((resolve) => {
    const look = () => document.getElementById(id);
    if (look()) return resolve(look());
    const observer = new MutationObserver(() => {
      if (!look()) return;
      observer.disconnect();
      resolve(look());
    });
    observer.observe(document.documentElement, { childList: true, subtree: true });
  });
}

// A number with at most so many digits after its point.
export function digits(value, count = 1) {
  return String(Number(value.toFixed(count)));
}

export function clock(seconds) {
  const rounded = Math.floor(seconds);
  return `${Math.floor(rounded / 60)}:${String(rounded % 60).padStart(2, "0")}`;
}

export function dateText(seconds) {
  return new Date(1000 * seconds).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

const ANNOUNCEMENT_MS = 3000;
let lastProgress = 0;

// Says something to screen readers. Progress is said at most every few seconds.
export function announce(text, isProgress = false) {
  const now = Date.now();
  if (isProgress && now - lastProgress < ANNOUNCEMENT_MS) return;
  lastProgress = now;
  const region = document.getElementById("announcer");
  if (region) region.textContent = text;
}

// Shows an error until it is closed or the next action succeeds.
export function alertUser(text) {
  const region = document.getElementById("alert");
  if (!region) return;
  region.replaceChildren(
    element("p", {}, text, button("Close", () => clearAlert(), { class: "button small" })),
  );
}

export function clearAlert() {
  document.getElementById("alert")?.replaceChildren();
}

// Runs an action; an error of it is shown, and nothing else of it happens. The button waits meanwhile: a second click
// on it does nothing.
export async function attempt(action, control = null) {
  if (control?.getAttribute("aria-busy") === "true") return null;
  control?.setAttribute("aria-busy", "true");
  try {
    const result = await action();
    clearAlert();
    return result;
  } catch (error) {
    alertUser(error.message);
    return null;
  } finally {
    control?.removeAttribute("aria-busy");
  }
}
