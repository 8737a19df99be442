"use strict";
// The page draws the answer of v1/cluster. What there is to decide, the server has decided.
const $ = id => document.getElementById(id);

// el makes an element. Text is set as text: nothing from a server becomes markup.
function el(tag, text, name, ...children) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (name) e.className = name;
  e.append(...children);
  return e;
}

function showProblem(p) {
  const title = el("p", undefined, "title", el("strong", p.severity), document.createTextNode(p.title));
  const li = el("li", undefined, ["critical", "notice"].includes(p.severity) ? p.severity : "warning", title);
  if (p.since) li.append(el("p", "since " + p.since, "detail"));
  for (const d of p.details) li.append(el("p", d, "detail"));
  if (p.keys && p.keys.length === 1) li.append(el("p", "key " + p.keys[0], "detail"));
  else if (p.keys) {
    const keys = el("details", undefined, "", el("summary", p.keys.length + " keys"));
    keys.append(...p.keys.map(k => el("div", undefined, "", el("code", k))));
    li.append(keys);
  }
  li.append(el("p", p.advice));
  for (const c of p.commands || []) li.append(el("pre", c));
  return li;
}

function showFacts(v) {
  const facts = [];
  const fact = (name, ...values) => facts.push(el("dt", name), ...values.map(x => el("dd", undefined, "", ...x)));
  const dim = text => el("small", text);
  fact("Active key", v.active
    ? [el("code", v.active.id), `, ${v.active.algorithm}, for ${v.active.age}, `, dim("since " + v.active.since)]
    : ["none"]);
  fact("Next rotation", [v.nextRotation]);
  fact("Last backup", [v.lastBackup]);
  if (v.backupSigner) fact("Backups signed by", [el("code", v.backupSigner)]);
  if (v.certificate) fact("First certificate to expire", [v.certificate]);
  if (v.clear) fact("Records in the clear", [v.clear.moved + " encrypted, " + (v.clear.left < 0 ? "?" : v.clear.left) + " left", ...(v.clear.error ? [": " + v.clear.error] : [])]);
  v.keks.forEach((k, i) => facts.push(el("dt", i ? "" : "KEKs"), el("dd", undefined, "",
    el("code", k.id), " ", el("span", k.state, ["wraps", "old"].includes(k.state) ? "" : "bad"), " on " + k.servers.join(", "),
    ...(k.detail ? [": " + k.detail] : []))));
  $("facts").replaceChildren(...facts);
}

function showKeys(v) {
  const head = el("tr", undefined, "", el("th", "Key"), el("th", "State"), ...(v.counted ? [el("th", "Records", "number")] : []));
  for (const s of v.servers) {
    const th = el("th", s.id, "", el("small", s.role, s.role.replace(" ", "-")));
    th.dataset.server = s.id;
    head.append(th);
  }
  $("servers").replaceChildren(head);
  head.closest("table").style.setProperty("--columns", (v.counted ? 2 : 1) + v.servers.length);
  $("keys").replaceChildren(...v.keys.map(k => {
    const state = el("td", k.state, k.state);
    if (k.moving) {
      const bar = el("progress"), sum = k.moving.moved + Math.max(0, k.records);
      if (k.records >= 0) {
        bar.max = Math.max(1, sum);
        bar.value = k.moving.moved;
      }
      bar.ariaLabel = "moved";
      state.append(bar, el("small", k.moving.moved + (k.records < 0 ? " moved" : " of " + sum + " moved")));
      if (k.moving.error) state.append(el("small", k.moving.error, "bad"));
    }
    const name = el("td", undefined, "", el("code", k.id), el("small", `${k.algorithm}, since ${k.since}`));
    if (v.buttons && k.state !== "active") {
      const remove = el("button", "Remove…", "quiet");
      remove.ariaLabel = "Remove the key " + k.id;
      remove.addEventListener("click", () => askRemove(k));
      name.lastChild.append(" ", remove);
    }
    const row = el("tr", undefined, k.state === "active" ? "active" : "", name, state);
    if (v.counted) row.append(el("td", k.records < 0 ? "?" : k.records, "number"));
    row.dataset.key = k.id;
    row.append(...k.held.map(how => el("td", how, how)));
    return row;
  }));
  $("table").hidden = false;
}

const drawn = {}; // the parts of the page, as JSON. What has not changed stays, and with it what a user has selected or opened.

function draw(part, data, how) {
  const now = JSON.stringify(data);
  if (now !== drawn[part]) how();
  drawn[part] = now;
}

function show(v) {
  document.title = (v.verdict.severity ? v.verdict.severity + ": " : "") + v.cluster;
  $("cluster").textContent = v.cluster;
  $("server").textContent = "as " + v.server + " sees it";
  draw("verdict", v.verdict, () => {
    $("verdict").textContent = v.verdict.text;
    $("verdict").className = v.verdict.severity || "well";
  });
  draw("problems", v.problems, () => $("problems").replaceChildren(...v.problems.map(showProblem)));
  draw("facts", [v.active, v.nextRotation, v.lastBackup, v.backupSigner, v.certificate, v.clear, v.keks], () => showFacts(v));
  draw("keys", [v.keys, v.servers, v.buttons], () => {
    const focused = document.activeElement.closest("tr")?.dataset.key;
    showKeys(v);
    [...$("keys").rows].find(row => focused && row.dataset.key === focused)?.querySelector("button")?.focus();
  });
  $("buttons").hidden = !v.buttons;
}

// Refused is an error that a server has answered; other errors mean that there was no answer.
class Refused extends Error {}

// say changes a text if it is another one: what has a status is read out.
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

async function call(method, path, body, signal) {
  const resp = await fetch(path, { method, body: body && JSON.stringify(body), signal });
  const answer = await resp.json();
  if (!resp.ok) throw new Refused(answer.error);
  return answer;
}

async function look() {
  try {
    // A server that hangs would leave the page as it is, and nothing would say that it is old.
    show(await call("GET", "v1/cluster", undefined, AbortSignal.timeout(3000)));
    say("stale", "");
  } catch (e) {
    say("stale", e instanceof Refused ? "This page is out of date: " + e.message : "This page is out of date: this server does not answer.");
  }
  setTimeout(look, 1000);
}

// act sends what a click means, and says what came of it.
async function act(doing, failed, method, path, body, done) {
  $("said").textContent = doing;
  $("said").className = "";
  try {
    $("said").textContent = done(await call(method, path, body));
  } catch (e) {
    $("said").textContent = failed + e.message;
    $("said").className = "bad";
  }
}

async function rotate(full) {
  const buttons = [$("rotate"), $("full")];
  buttons.forEach(b => b.disabled = true);
  await act("Rotating…", "Not rotated: ", "POST", "v1/keys", { full }, key => "The key " + key.id + " is active.");
  buttons.forEach(b => b.disabled = false);
}

// ask has the user confirm what can hurt. Cancel has the focus.
function ask(question, consequence, yes, confirmed) {
  $("question").textContent = question;
  $("consequence").textContent = consequence;
  $("yes").textContent = yes;
  $("yes").onclick = () => { $("ask").close(); confirmed(); };
  $("ask").showModal();
}

function askRemove(k) {
  const data = k.records ? `Its ${k.records < 0 ? "" : k.records + " "}records are re-encrypted first, then the key is removed. ` : "";
  ask("Remove this key for good?", `${k.id}, ${k.state}. ${data}You can't cancel this.`, "Remove", () =>
    act("Removing…", "Not removed: ", "DELETE", "v1/keys/" + encodeURIComponent(k.id), undefined, () => "The key " + k.id + " is removed."));
}

$("rotate").addEventListener("click", () => rotate(false));
$("full").addEventListener("click", () => ask("Rotate fully?",
  "A new key becomes active, and every record is re-encrypted under it. This loads all servers until it is done, and you can't cancel it.",
  "Rotate fully", () => rotate(true)));
$("no").addEventListener("click", () => $("ask").close());
look();
