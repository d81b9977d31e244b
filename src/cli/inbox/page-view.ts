import { INBOX_SCRIPT } from './page-script.ts'

/** The page of the development inbox, complete: style and script carry the nonce of its policy and nothing is loaded. */
export function inboxView(nonce: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Postern inbox</title>
<link rel="icon" href="data:,">
<style nonce="${nonce}">${STYLE}</style>
</head>
<body>${BODY}<script type="module" nonce="${nonce}">${INBOX_SCRIPT}</script>
</body>
</html>
`
}

const STYLE = String.raw`
:root {
  --paper: #ffffff; --desk: #f6f6f3; --ink: #1d2125; --quiet: #5d666f; --line: #e2e2dc; --accent: #0b5c7a; --chosen: #e3eef2; --hover: #eeeeea;
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--desk);
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #1b1f23; --desk: #14171a; --ink: #e4e7ea; --quiet: #9aa4ad; --line: #2c3237; --accent: #7cc4de; --chosen: #1f343d; --hover: #22272c; }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html, body { height: 100%; margin: 0; }
body { display: grid; grid-template: auto 1fr / minmax(260px, 360px) 1fr; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; border-radius: 4px; }
.top { grid-column: 1 / -1; display: flex; align-items: baseline; gap: 12px; padding: 12px 20px; border-bottom: 1px solid var(--line); }
.top h1 { font-size: 17px; margin: 0; letter-spacing: 0.01em; }
.top p { margin: 0; color: var(--quiet); font-size: 13px; }
.list { overflow-y: auto; border-right: 1px solid var(--line); min-height: 0; }
.list ul { list-style: none; margin: 0; padding: 0; }
.list a { display: grid; grid-template-columns: 1fr auto; gap: 0 12px; padding: 10px 20px; color: inherit; text-decoration: none; border-bottom: 1px solid var(--line); border-left: 3px solid transparent; }
.list a:hover { background: var(--hover); }
.list a[aria-current] { background: var(--chosen); border-left-color: var(--accent); }
.list a > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.list .from { font-size: 13px; }
.list time, .list .to { color: var(--quiet); font-size: 13px; }
.list .subject { grid-column: 1 / -1; }
.list .to { grid-column: 1 / -1; }
.list .new .from, .list .new .subject { font-weight: 650; }
.empty { padding: 32px 20px; color: var(--quiet); margin: 0; }
.reader { display: flex; flex-direction: column; min-width: 0; min-height: 0; background: var(--paper); }
.reader > .empty { margin: auto; }
.head { padding: 18px 24px 12px; }
.head h2 { font-size: 20px; line-height: 1.3; margin: 0 0 10px; overflow-wrap: anywhere; }
.head dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; margin: 0; font-size: 14px; }
.head dt { color: var(--quiet); }
.head dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.back { display: none; }
.files { display: flex; flex-wrap: wrap; gap: 8px; list-style: none; margin: 0; padding: 0 24px 12px; }
.files li { max-width: 100%; }
.files a { display: inline-flex; gap: 8px; max-width: 100%; border: 1px solid var(--line); border-radius: 6px; padding: 4px 10px; font-size: 13px; text-decoration: none; }
.files a:hover { background: var(--hover); }
.files .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.files .size { color: var(--quiet); white-space: nowrap; }
.tabs { display: flex; gap: 4px; padding: 0 20px; border-bottom: 1px solid var(--line); }
.tabs button { font: inherit; font-size: 14px; color: var(--quiet); background: none; border: 0; border-bottom: 2px solid transparent; padding: 8px 10px; cursor: pointer; }
.tabs button:hover { color: var(--ink); }
.tabs [aria-selected='true'] { color: var(--ink); border-bottom-color: var(--accent); }
.body { flex: 1; min-height: 0; overflow: auto; display: flex; flex-direction: column; }
.body iframe { flex: 1; width: 100%; border: 0; background: #ffffff; color-scheme: light; }
.body pre { margin: 0; padding: 18px 24px; white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.55 ui-monospace, monospace; }
.body .text { font: inherit; max-width: 80ch; }
.body table { border-collapse: collapse; margin: 14px 24px; font-size: 14px; }
.body th { text-align: left; font-weight: 500; color: var(--quiet); vertical-align: top; padding: 4px 18px 4px 0; white-space: nowrap; }
.body td { padding: 4px 0; overflow-wrap: anywhere; }
.body .note { margin: 0; padding: 14px 24px 0; font-size: 13px; color: var(--quiet); }
@media (max-width: 720px) {
  body { grid-template: auto 1fr / minmax(0, 1fr); }
  .list { border-right: 0; }
  body.reading .list, body:not(.reading) .reader { display: none; }
  .list a { padding: 12px 16px; }
  .top { padding: 12px 16px; }
  .back { display: inline-block; margin: 0 0 10px; padding: 4px 0; text-decoration: none; }
  .head { padding: 12px 16px; }
  .files { padding: 0 16px 12px; }
  .tabs { padding: 0 8px; }
  .body pre { padding: 16px; }
  .body .note { padding: 14px 16px 0; }
  .body table { margin: 12px 16px; }
  .body th, .body td { display: block; padding: 0; }
  .body td { margin-bottom: 10px; }
}
`

const BODY = `
<header class="top"><h1>Postern inbox</h1><p id="status" role="status">Connecting…</p></header>
<nav class="list" aria-label="Messages">
<p class="empty" id="none">No mail yet. Send a message with the curl command in your terminal: it appears here by itself.</p>
<ul id="messages"></ul>
</nav>
<main class="reader" aria-label="Message">
<p class="empty" id="choose">Choose a message to read it.</p>
<div class="head" id="head" hidden>
<a class="back" href="#/">← All messages</a>
<h2 id="subject" tabindex="-1"></h2>
<dl id="facts"></dl>
</div>
<ul class="files" id="files" aria-label="Attachments" hidden></ul>
<div class="tabs" id="tabs" role="tablist" aria-label="Views of the message" hidden></div>
<div class="body" id="body" role="tabpanel" hidden></div>
</main>
`
