"use strict";

const study = JSON.parse(document.getElementById("study").textContent);
const TIE = "tie";
const PLACE = `retune-judge/${study.form}`;
const SECTIONS = ["start", "judge", "end"];
const at = (id) => document.getElementById(id);

// What one person has done: {annotator, session, started, place, choices: {question: answer or "tie"}}.
let work = null;
let order = [];
let saves = true;

// ---- what is kept on this device ----

function load(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function save() {
  try {
    localStorage.setItem(`${PLACE}/${plain(work.annotator)}`, JSON.stringify(work));
    localStorage.setItem(PLACE, JSON.stringify(plain(work.annotator)));
  } catch {
    saves = false;
    at("unsaved").hidden = false;
  }
}

const plain = (name) => name.normalize("NFC").trim().replace(/\s+/g, " ").toLowerCase();

function open(name) {
  const known = load(`${PLACE}/${plain(name)}`);
  work = known?.choices ? known : {
    annotator: name.trim().replace(/\s+/g, " "),
    session: [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join(""),
    started: new Date().toISOString(),
    place: 0,
    choices: {},
  };
  order = arranged(plain(work.annotator));
  work.place = Math.min(Math.max(0, work.place | 0), order.length - 1);
  save();
}

// ---- the order, which follows from the person's name alone ----

// 32 bits of FNV-1a (Fowler, Noll, Vo), mixed by the last step of MurmurHash3 (Appleby).
function hash(text) {
  let h = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) h = Math.imul(h ^ byte, 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function arranged(name) {
  const rank = (question) => hash(`${name}/${question.id}/order`);
  return study.questions
    .map((question) => ({
      ...question,
      answers: hash(`${name}/${question.id}/side`) & 1 ? [...question.answers].reverse() : question.answers,
    }))
    .sort((one, other) => rank(one) - rank(other) || (one.id < other.id ? -1 : 1));
}

// ---- what is shown ----

function show(section) {
  for (const id of SECTIONS) at(id).hidden = id !== section;
  at("who").hidden = section === "start";
  at("help").hidden = section !== "judge";
  at("who-name").textContent = work ? work.annotator : "";
  if (section === "judge") drawQuestion();
  if (section === "end") drawEnd();
  scrollTo(0, 0);
  (section === "start" ? at("name") : at(`${section}-title`)).focus({ preventScroll: true });
}

function drawQuestion() {
  const question = order[work.place];
  at("judge-title").textContent = `Question ${work.place + 1} of ${order.length}`;
  at("question").textContent = question.text;
  question.answers.forEach((answer, k) => {
    const text = at(`text-${k + 1}`);
    text.textContent = answer.text || "(empty: no answer was given)";
    text.classList.toggle("none", !answer.text);
  });
  at("back").disabled = work.place === 0;
  drawChoice();
}

function drawChoice() {
  const question = order[work.place];
  const choice = work.choices[question.id];
  const done = answered();
  question.answers.forEach((answer, k) => {
    at(`choose-${k + 1}`).setAttribute("aria-pressed", String(choice === answer.id));
    at(`card-${k + 1}`).classList.toggle("chosen", choice === answer.id);
  });
  at("choose-tie").setAttribute("aria-pressed", String(choice === TIE));
  at("progress").max = order.length;
  at("progress").value = done;
  at("progress-text").textContent = `${done} of ${order.length} answered`;
}

function drawEnd() {
  const left = order.length - answered();
  at("end-title").textContent = left ? `${left} of ${order.length} still open` : "All questions are answered";
  at("end-text").textContent = left
    ? "Choose an open question below to answer it. You can also download now: open questions are not counted."
    : "Download your answers and send the file to the person who sent you this page. You can still change them and download again: the last file counts.";
  at("downloaded").textContent = "";
  at("copy").value = exported();
  at("list").replaceChildren(...order.map((question, k) => {
    const button = document.createElement("button");
    const open = !(question.id in work.choices);
    button.type = "button";
    button.textContent = k + 1;
    button.setAttribute("aria-label", `Question ${k + 1}, ${open ? "open" : "answered"}`);
    button.classList.toggle("open", open);
    button.addEventListener("click", () => go(k));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

const answered = () => order.filter((question) => question.id in work.choices).length;

// ---- what a person does ----

function choose(which) {
  const question = order[work.place];
  work.choices[question.id] = which === TIE ? TIE : question.answers[which - 1].id;
  save();
  drawChoice();
  at("announce").textContent = which === TIE ? "Chosen: about the same" : `Chosen: answer ${which} is better`;
}

function go(place) {
  if (place < 0) return;
  at("announce").textContent = "";
  if (place >= order.length) return show("end");
  work.place = place;
  save();
  show("judge");
}

function exported() {
  const answers = order
    .filter((question) => question.id in work.choices)
    .map((question) => ({
      question: question.id,
      choice: work.choices[question.id],
      first: question.answers[0].id,
    }));
  const { annotator, session, started } = work;
  return JSON.stringify({
    format: "retune-judge-answers", version: 1, form: study.form, annotator, session, started,
    exported: new Date().toISOString(), asked: order.length, answers,
  }, null, 1);
}

function download() {
  const text = exported();
  const link = document.createElement("a");
  const name = plain(work.annotator).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") || "answers";
  link.download = `answers-${name}-${study.form.slice(0, 6)}.json`;
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  at("copy").value = text;
  at("downloaded").textContent = `Your answers are in ${link.download}, where this browser keeps downloads. Send that file to the person who sent you this page.`;
}

// ---- wiring ----

at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = at("name").value;
  at("name-error").textContent = plain(name) ? "" : "Please enter a name or a code.";
  at("name").setAttribute("aria-invalid", String(!plain(name)));
  if (!plain(name)) return at("name").focus();
  open(name);
  show("judge");
});
at("leave").addEventListener("click", () => {
  at("name").value = "";
  work = null;
  try {
    localStorage.removeItem(PLACE);
  } catch {
    saves = false;
  }
  show("start");
});
at("choose-1").addEventListener("click", () => choose(1));
at("choose-2").addEventListener("click", () => choose(2));
at("choose-tie").addEventListener("click", () => choose(TIE));
at("next").addEventListener("click", () => go(work.place + 1));
at("back").addEventListener("click", () => go(work.place - 1));
at("overview").addEventListener("click", () => show("end"));
at("return").addEventListener("click", () => go(work.place));
at("download").addEventListener("click", download);

const KEYS = {
  judge: {
    1: () => choose(1), 2: () => choose(2), 0: () => choose(TIE),
    n: () => go(work.place + 1), ArrowRight: () => go(work.place + 1),
    b: () => go(work.place - 1), ArrowLeft: () => go(work.place - 1),
    o: () => show("end"),
  },
  end: { b: () => go(work.place), ArrowLeft: () => go(work.place) },
};

document.addEventListener("keydown", (event) => {
  if (!at("keys").checked || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (event.target.matches("input[type=text], textarea")) return;
  const section = SECTIONS.find((id) => !at(id).hidden);
  const act = (KEYS[section] || {})[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

// The same form in a second tab: what is chosen there is chosen here too.
addEventListener("storage", (event) => {
  if (!work || event.key !== `${PLACE}/${plain(work.annotator)}` || !event.newValue) return;
  work.choices = JSON.parse(event.newValue).choices;
  if (!at("judge").hidden) drawChoice();
  if (!at("end").hidden) drawEnd();
});
addEventListener("beforeunload", (event) => {
  if (!saves && work && Object.keys(work.choices).length) event.preventDefault();
});

document.querySelectorAll(".count").forEach((place) => {
  place.textContent = study.questions.length === 1 ? "one question" : `${study.questions.length} questions`;
});
const last = load(PLACE);
if (typeof last === "string" && load(`${PLACE}/${last}`)) {
  open(last);
  show("judge");
} else {
  show("start");
}
