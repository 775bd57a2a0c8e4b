"use strict";
// Opens an explorer page in Node: as much of a browser as its scripts use, and no more. Elements are those whose ids the
// page has; whatever a script asks for beyond that is an error. Prints, as JSON, what the scenario on stdin returns.
//
//     node open_page.js page.html < scenario.js
//
// A scenario is the body of a function of `page` ({ element, input, key, point, focused }) and sees what scripts define.
const fs = require("fs");
const vm = require("vm");

class Element {
  constructor(kind = "div") {
    Object.assign(this, { kind, children: [], listeners: {}, attributes: {}, style: {}, hidden: false, value: "", width: 0, height: 0 });
  }
  set textContent(text) { this.text = String(text); this.children = []; }
  get textContent() { return (this.text || "") + this.children.map((child) => child.textContent).join(""); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; this.text = ""; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(kind, listener) { (this.listeners[kind] ||= []).push(listener); }
  dispatch(kind, event) { for (const listener of this.listeners[kind] || []) listener({ currentTarget: this, target: this, preventDefault() {}, ...event }); }
  focus() { Element.focused = this; }
  getBoundingClientRect() { return { left: 10, top: 20, width: 300, height: 300 }; }
  getContext() {
    const createImageData = (width, height) => ({ width, height, data: new Uint8ClampedArray(width * height * 4) });
    return { createImageData, putImageData: (image) => (this.drawn = image.data.slice()) };
  }
}

const html = fs.readFileSync(process.argv[2], "utf8");
const elements = new Map();
for (const [, kind, attributes, text] of html.matchAll(/<(\w+)((?:\s[^<>]*)?\sid="[^"]+"[^<>]*)>([^<]*)/g)) {
  const one = new Element(kind);
  one.textContent = text;
  one.value = (attributes.match(/\svalue="([^"]*)"/) || ["", ""])[1];
  one.checked = /\schecked/.test(attributes);
  elements.set(attributes.match(/\sid="([^"]+)"/)[1], one);
}
for (const [, id, value, text] of html.matchAll(/<select id="([^"]+)">\s*<option(?: value="([^"]*)")?>([^<]*)/g)) {
  elements.get(id).value = value ?? text;
}
const sizes = html.match(/:root \{[^}]*\}/)[0];

globalThis.document = Object.assign(new Element("document"), {
  documentElement: new Element("html"),
  getElementById: (id) => elements.get(id) || null,
  createElement: (kind) => new Element(kind),
  createTextNode: (text) => ({ textContent: text }),
});
globalThis.getComputedStyle = () => ({ getPropertyValue: (name) => sizes.match(new RegExp(`${name}: ([^;]+);`))[1] });
globalThis.matchMedia = () => new Element();
globalThis.requestAnimationFrame = (draw) => draw();

for (const [, script] of html.matchAll(/<script>([\s\S]*?)<\/script>/g)) vm.runInThisContext(script);
globalThis.page = {
  element: (id) => elements.get(id),
  input(id, value) {
    elements.get(id)[typeof value === "boolean" ? "checked" : "value"] = value;
    elements.get("controls").dispatch("input", {});
  },
  key: (id, key) => elements.get(id).dispatch("keydown", { key }),
  point: (id, x, y) => elements.get(id).dispatch("pointermove", { clientX: 10 + 300 * x, clientY: 20 + 300 * y }),
  focused: () => Element.focused,
};
const scenario = fs.readFileSync(0, "utf8");
process.stdout.write(JSON.stringify(vm.runInThisContext(`(() => { ${scenario} })()`)));
