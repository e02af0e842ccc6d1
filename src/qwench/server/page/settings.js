// What the user has chosen: the values, kept in this browser, and the dialog that shows them.

import { element } from "./element.js";

const KEPT = "qwench.settings";
const THEME = "qwench.theme";
export const BUDGETS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, null]; // tokens; null is no bound

const DEFAULTS = {
  model: "",
  system: "",
  key: "",
  tools: "",
  thinking: "auto",
  budget: 1024,
  sampling: {},
};

const SAMPLING = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05 },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01 },
  { name: "top_k", label: "Top k", min: 0, max: 1000, step: 1 },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01 },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.5, max: 2, step: 0.01 },
  { name: "max_tokens", label: "Most tokens", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", label: "Seed", min: 0, max: 4_294_967_295, step: 1 },
];

const EXAMPLE_TOOL = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city now",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

export class Settings {
  constructor() {
    this.values = { ...structuredClone(DEFAULTS), ...read() };
  }

  /** Change some values and keep them. */
  set(changed) {
    Object.assign(this.values, changed);
    keep(KEPT, JSON.stringify(this.values));
  }

  /** The fields of a request that these values ask for; a value that was not given is the server's to choose. */
  get fields() {
    const { thinking, budget, sampling } = this.values;
    const bound = budget === null ? { reasoning_budget: -1 } : { thinking_budget: budget };
    const spelled = { auto: {}, off: { enable_thinking: false }, on: { enable_thinking: true, ...bound } }[thinking];
    const offered = this.tools;
    return { ...sampling, ...spelled, ...(offered.length ? { tools: offered } : {}) };
  }

  /** The tools that are offered to the model: none where the text is no list of them. */
  get tools() {
    try {
      const found = JSON.parse(this.values.tools);
      return Array.isArray(found) ? found : [];
    } catch {
      return [];
    }
  }
}

/** The fields of the dialog. `actions` has exportAll, importFrom(file), deleteAll and keyChanged. */
export function settingsFields(settings, models, about, actions) {
  const { values } = settings;
  const change = (name) => (event) => settings.set({ [name]: event.target.value });
  const picked = models.some((model) => model.id === values.model) ? values.model : "";
  const choices = [element("option", { value: "" }, "Whatever is served"), ...models.map(({ id }) => element("option", { value: id }, id))];
  const model = element("select", { onchange: change("model") }, choices);
  model.value = picked;
  const key = element("input", { type: "password", value: values.key, autocomplete: "off", placeholder: "Only if the server asks for one" });
  key.addEventListener("change", () => (settings.set({ key: key.value.trim() }), actions.keyChanged()));
  const system = element("textarea", { rows: 3, value: values.system, onchange: change("system"), placeholder: "None" });
  return [
    field("Model", model),
    field("System prompt", system),
    element("fieldset.grid", {}, element("legend", {}, "Sampling"), hint("Empty: as the model's makers recommend."), SAMPLING.map((each) => number(settings, each))),
    toolsField(settings),
    field("API key", key, hint("Kept in this browser, sent to this server only.")),
    themeField(),
    dataField(actions),
    element("p.about", {}, about, " ", element("a", { href: "/docs", target: "_blank" }, "The API")),
  ];
}

function field(label, control, ...more) {
  return element("label.field", {}, element("span", {}, label), control, ...more);
}

function hint(text) {
  return element("small", {}, text);
}

function number(settings, { name, label, ...bounds }) {
  const control = element("input", { type: "number", ...bounds, value: settings.values.sampling[name] ?? "", inputMode: "decimal" });
  control.addEventListener("change", () => {
    const { [name]: _, ...others } = settings.values.sampling;
    const given = control.value !== "" && control.reportValidity();
    settings.set({ sampling: given ? { ...others, [name]: Number(control.value) } : others });
  });
  return field(label, control);
}

function toolsField(settings) {
  const complaint = element("small.problem", { role: "alert" });
  const area = element("textarea.mono", { rows: 4, value: settings.values.tools, spellcheck: false, placeholder: "None. A JSON list, as OpenAI's API has it." });
  const keepTools = () => {
    settings.set({ tools: area.value.trim() });
    complaint.textContent = area.value.trim() && !settings.tools.length ? "This is no JSON list of tools; none is offered." : "";
  };
  area.addEventListener("change", keepTools);
  const example = element("button", { type: "button" }, "Insert an example");
  example.addEventListener("click", () => ((area.value = JSON.stringify(EXAMPLE_TOOL, null, 2)), keepTools()));
  return element("div.field", {}, field("Tools", area, hint("You give the results of the model's calls by hand.")), complaint, example);
}

function themeField() {
  const now = document.documentElement.dataset.theme;
  const options = Object.entries({ auto: "As the system", light: "Light", dark: "Dark" }).map(([value, label]) => {
    const radio = element("input", { type: "radio", name: "theme", value, checked: value === now });
    radio.addEventListener("change", () => ((document.documentElement.dataset.theme = value), keep(THEME, value)));
    return element("label", {}, radio, ` ${label}`);
  });
  return element("fieldset.choices", {}, element("legend", {}, "Appearance"), options);
}

function dataField({ exportAll, importFrom, deleteAll }) {
  const file = element("input", { type: "file", accept: "application/json,.json", hidden: true });
  file.addEventListener("change", () => (importFrom(file.files[0]), (file.value = "")));
  const button = (label, onclick, kind = "button") => element(kind, { type: "button", onclick }, label);
  return element(
    "fieldset.choices",
    {},
    element("legend", {}, "Conversations"),
    hint("They are kept in this browser and nowhere else."),
    element("div.buttons", {}, button("Export all", exportAll), button("Import", () => file.click()), button("Delete all", deleteAll, "button.alarming"), file),
  );
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // this browser keeps nothing; the values hold as long as the page
  }
}
