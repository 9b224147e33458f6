"use strict";

// Makes one node like another and leaves equal parts alone, so that the focus stays where it is.
function makeLike(node, wanted) {
  if (node.nodeType !== wanted.nodeType || node.nodeName !== wanted.nodeName) {
    node.replaceWith(wanted.cloneNode(true));
    return;
  }
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  for (const { name } of [...node.attributes]) {
    if (!wanted.hasAttribute(name)) node.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  makeChildrenLike(node, wanted);
}

function makeChildrenLike(node, wanted) {
  // Rows are matched by their ids: a new one pushes the others down.
  let place = node.firstChild;
  for (const child of [...wanted.childNodes]) {
    const own = child.id ? [...node.children].find((each) => each.id === child.id) : null;
    if (own) {
      if (own !== place) node.insertBefore(own, place);
      else place = place.nextSibling;
      makeLike(own, child);
    } else if (place && !child.id && !place.id) {
      const next = place.nextSibling;
      makeLike(place, child);
      place = next;
    } else {
      node.insertBefore(child.cloneNode(true), place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function keepLive(region) {
  const status = document.getElementById("live");
  const stream = new EventSource(region.dataset.live);
  const patient = "patient" in region.dataset;
  let latest = null;

  // Rows must not move under a pointer.
  const isPointedAt = () => patient && region.querySelector("tr:hover, tr:focus-within") !== null;
  const show = () => {
    if (latest === null) return;
    if (isPointedAt()) {
      status.textContent = "· paused while you point at a row";
      return;
    }
    const wanted = document.createElement("div");
    wanted.innerHTML = latest;
    latest = null;
    makeChildrenLike(region, wanted);
    status.textContent = "· live";
  };
  stream.onmessage = (event) => {
    latest = JSON.parse(event.data);
    show();
  };
  region.addEventListener("pointerleave", show);
  stream.onerror = () => {
    status.textContent = stream.readyState === EventSource.CLOSED
      ? "· not live: reload the page" : "· connection lost, reconnecting";
  };
}

function drawWires(comparison) {
  const wires = comparison.querySelector(".wires");
  const lines = (side) => new Map(
    [...comparison.querySelectorAll(`.${side} [data-path]`)].map((line) => [line.dataset.path, line]),
  );
  const [left, right] = [lines("left"), lines("right")];
  const drawn = JSON.parse(comparison.dataset.links)
    .filter(([source, target]) => left.has(source) && right.has(target))
    .map(([source, target]) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      wires.append(path);
      return { path, source: left.get(source), target: right.get(target) };
    });

  const place = () => {
    const origin = comparison.getBoundingClientRect();
    for (const { path, source, target } of drawn) {
      const from = source.getBoundingClientRect();
      const to = target.getBoundingClientRect();
      const edge = source.closest(".card").getBoundingClientRect().right - origin.left;
      const other = target.closest(".card").getBoundingClientRect().left - origin.left;
      const y1 = from.top + from.height / 2 - origin.top;
      const y2 = to.top + to.height / 2 - origin.top;
      const bend = (other - edge) / 2;
      path.setAttribute(
        "d", `M${edge} ${y1} C${edge + bend} ${y1} ${other - bend} ${y2} ${other} ${y2}`,
      );
    }
  };
  const light = (line, on) => {
    for (const { path, source, target } of drawn) {
      if (source === line || target === line) {
        for (const each of [path, source, target]) each.classList.toggle("lit", on);
      }
    }
  };
  for (const line of [...left.values(), ...right.values()]) {
    line.addEventListener("pointerenter", () => light(line, true));
    line.addEventListener("pointerleave", () => light(line, false));
  }
  new ResizeObserver(place).observe(comparison);
  place();
}

function copyOnClick(button) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);  // without the permission, the user can still copy it
      button.textContent = "Selected";
    }
  });
}

function useLink(form) {
  const link = location.hash;
  if (!/^#[\w-]{43}$/.test(link)) return;
  history.replaceState(null, "", location.pathname);  // going back must not show it
  form.elements.link.value = link;
  form.requestSubmit();
}

document.querySelectorAll("[data-sign-in]").forEach(useLink);
document.querySelectorAll("[data-live]").forEach(keepLive);
document.querySelectorAll("[data-links]").forEach(drawWires);
document.querySelectorAll("[data-copy]").forEach(copyOnClick);
