// The studio's JSON API, described at /api/docs.

async function call(method, path, body, type = "application/json") {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = type;
    options.body = type === "application/json" ? JSON.stringify(body) : body;
  }
  let response;
  try {
    response = await fetch(`/api/${path}`, options);
  } catch {
    throw new Error("The studio does not answer; is `melody studio` still running?");
  }
  if (response.status === 204) return null;
  const text = await response.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error(`The studio answered ${response.status} without JSON`);
  }
  if (!response.ok) throw new Error(value.error ?? `The studio answered ${response.status}`);
  return value;
}

const part = encodeURIComponent;

export const api = {
  info: () => call("GET", "info"),
  submit: async (settings) => (await call("POST", "jobs", settings)).jobs,
  jobs: async () => (await call("GET", "jobs")).jobs,
  cancel: (id) => call("DELETE", `jobs/${part(id)}`),
  takes: (limit, before, favourites) => {
    const query = new URLSearchParams({ limit });
    if (before) query.set("before", before);
    if (favourites) query.set("favourites", "true");
    return call("GET", `takes?${query}`);
  },
  setFavourite: (id, favourite) => call("PATCH", `takes/${part(id)}`, { favourite }),
  remove: (id) => call("DELETE", `takes/${part(id)}`),
  upload: (data) => call("POST", "uploads", data, "application/octet-stream"),
  vote: (a, b, choice) => call("POST", "votes", { a, b, choice }),
};

const suffix = (file) => file.slice(file.lastIndexOf("."));

export const urls = {
  stream: (id) => `/api/jobs/${part(id)}/sound`,
  sound: (take) => `/api/takes/${part(take.id)}/sound${suffix(take.file)}`,
  download: (id, format) => `/api/takes/${part(id)}/sound.${format}?download=true`,
  spectrogram: (id) => `/api/takes/${part(id)}/spectrogram.png`,
  uploadedSound: (name) => `/api/uploads/${part(name)}/sound${suffix(name)}`,
  uploadedSpectrogram: (name) => `/api/uploads/${part(name)}/spectrogram.png`,
  archive: "/api/export.zip",
};
