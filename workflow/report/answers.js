"use strict";
// Search and filters in the bar at the top, and long pages bit by bit; without this script the page shows everything.
(() => {
  const find = (selector, root = document) => [...root.querySelectorAll(selector)];
  const get = (id) => document.getElementById(id);
  const query = get("query");
  const cards = find(".card").map((element) => ({
    element,
    prompt: element.querySelector(".prompt"),
    answers: find(".answer", element).map((answer) => ({
      element: answer,
      model: answer.dataset.model,
      flags: answer.dataset.flags.split(" "),
      body: answer.querySelector(".text"),
    })),
  }));
  // Highlights matches without changing the text; a browser without this API only filters.
  const marks = window.Highlight && CSS.highlights ? new Highlight() : null;
  if (marks) CSS.highlights.set("found", marks);

  const scrolled = [];
  const step = 300; // prompts that are shown at first, and with each press of the button
  let most = step;

  const isOn = (id) => Boolean(get(id)?.checked);
  const escape = (word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");

  function passes(card, words) {
    const shown = card.answers.filter((answer) => !answer.element.hidden);
    const text = [card.prompt, ...shown.map((answer) => answer.body)].map((body) => body.textContent).join("\n");
    return (
      words.every((word) => new RegExp(word, "iu").test(text)) &&
      (!isOn("differs") || new Set(shown.map((answer) => answer.body.textContent)).size > 1) &&
      ["cut", "unusable"].every((flag) => !isOn(flag) || shown.some((answer) => answer.flags.includes(flag)))
    );
  }

  // Highlight all words in a text, and scroll a long text to the first match.
  function mark(body, words) {
    const node = body.firstChild;
    if (!node) return;
    let first = null;
    for (const match of node.data.matchAll(new RegExp(words.join("|"), "giu"))) {
      const range = new Range();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      marks.add(range);
      first ??= range;
    }
    if (first && body.scrollHeight > body.clientHeight) {
      const above = first.getBoundingClientRect().top - body.getBoundingClientRect().top;
      body.scrollTop += above - body.clientHeight / 3;
      scrolled.push(body);
    }
  }

  function update() {
    const words = query.value.split(/\s+/u).filter(Boolean).map(escape);
    const chosen = new Set(find("#models input:checked").map((box) => box.value));
    document.body.classList.toggle("whole", isOn("whole"));
    marks?.clear();
    for (const body of scrolled.splice(0)) body.scrollTop = 0;
    const linked = location.hash.slice(1);
    let count = 0;
    for (const card of cards) {
      for (const answer of card.answers) answer.element.hidden = !chosen.has(answer.model);
      const found = passes(card, words);
      count += found;
      card.element.hidden = !(found && (count <= most || card.element.id === linked));
    }
    get("more").hidden = count <= most;
    get("rest").textContent = `${most.toLocaleString("en")} of ${count.toLocaleString("en")} prompts are shown; the search covers all.`;
    for (const group of find(".group")) group.hidden = !find(".card", group).some((card) => !card.hidden);
    get("count").textContent = `${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")}`;
    if (!marks || !words.length) return;
    for (const card of cards.filter((each) => !each.element.hidden)) {
      for (const body of [card.prompt, ...card.answers.map((answer) => answer.body)]) mark(body, words);
    }
  }

  // A link can contain a search: answers.html#q=words
  function readLink() {
    const words = new URLSearchParams(location.hash.slice(1)).get("q");
    if (words !== null) query.value = words;
    update();
    if (words === null) get(location.hash.slice(1))?.scrollIntoView();
  }

  let waiting = 0;
  function updateSoon() {
    clearTimeout(waiting);
    waiting = setTimeout(update, 100);
  }
  // While an input method composes a Chinese word, the box contains Latin letters: search afterwards.
  query.addEventListener("input", (event) => event.isComposing || updateSoon());
  query.addEventListener("compositionend", updateSoon);
  get("options").addEventListener("change", update);
  get("next").addEventListener("click", () => {
    most += step;
    update();
  });
  window.addEventListener("hashchange", readLink);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input") && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      query.select();
      query.focus();
    } else if (event.key === "Escape" && event.target === query) {
      query.value = "";
      update();
    }
  });
  for (const control of find(".js")) control.hidden = false;
  get("options").open = window.innerWidth > 800;
  readLink();
})();
