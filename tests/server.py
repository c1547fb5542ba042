"A publisher on 127.0.0.1 that can stall, truncate, refuse, ignore ranges and send something else."
import http.server
import threading
from contextlib import contextmanager


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        name, at = self.path.lstrip("/").partition("?")[0], self.headers.get("Range")
        s.asked.append((name, at))
        s.heard.append((self.path, dict(self.headers)))
        data, mood = s.files.get(name), (s.moods[name].pop(0) if s.moods.get(name) else "")
        if mood.startswith("redirect"):
            self.send_response(302)
            self.send_header("Location", mood[9:] or s.where + "/moved/" + name)
            self.end_headers()
            return
        name = name.removeprefix("moved/")
        data = s.files.get(name)
        if data is None or mood.isdigit(): return self.send_error(int(mood or 404))
        at = int(at[6:-1]) if at and mood != "no range" else 0
        if at and at >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if at else 200)
        for k, v in s.extra.get(name, {}).items(): self.send_header(k, v)
        if mood != "no length": self.send_header("Content-Length", len(data) - at)
        if at: self.send_header("Content-Range", f"bytes {at + (mood == 'other part')}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        part = data[at:]
        if mood == "truncate": part = part[:max(len(part) // 2, 1)]
        if mood == "stall":
            self.wfile.write(part[:len(part) // 2])
            self.wfile.flush()
            s.go_on.wait(5)
            return
        if mood == "drip":
            for i in range(len(part)):
                if s.go_on.wait(.05): return
                try: self.wfile.write(part[i:i + 1])
                except ConnectionError: return
        try: self.wfile.write(part)
        except ConnectionError: pass # the client hung up


@contextmanager
def serving(s):
    "Answer in a thread; whoever waits for `s.go_on` goes on at the end."
    t = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
    t.start()
    try: yield s
    finally:
        s.go_on.set()
        s.shutdown()
        t.join()


@contextmanager
def publisher(files):
    """Serves `files` (name -> bytes) with the headers `extra[name]`; `moods[name]` lists how the next answers for a name go wrong;
    `asked` records (name, Range), `heard` (path with its query, headers)."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        s.files, s.moods, s.asked, s.go_on, s.daemon_threads = dict(files), {}, [], threading.Event(), True
        s.extra, s.heard = {}, []
        s.where = f"http://127.0.0.1:{s.server_port}"
        with serving(s): yield s
