"An OpenAI-compatible endpoint on 127.0.0.1 that can be slow, busy, broken and wrong; it labels by the lexicon."
import http.server
import json
import threading
from contextlib import contextmanager

from server import serving

from vlnotes.coca.lexicon import Lexicon

WRONG = {"prose": "I would say that this is a bus.", "truncated": '{"red": ["color","",""], "bus": ["veh', "half": '{"red', "duplicates": '{"red": ["color","",""], "red": ["color","",""]}',
         "unknown label": '{"red": ["hue","",""]}', "nothing": "", "null": None}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_POST(self):
        s = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        caption = asked["messages"][-1]["content"]
        with s.lock:
            s.asked.append(asked); s.heard.append((self.path, dict(self.headers)))
            mood = s.moods[caption].pop(0) if s.moods.get(caption) else s.always.get(caption, s.mood)
            s.now += 1; s.most = max(s.most, s.now)
        self.here = True
        try: self.answer(s, caption, mood)
        except ConnectionError: pass # the client hung up
        finally: self.leave()

    def leave(self): # before the answer goes out: the client's next request may be here before this thread wakes again
        with self.server.lock: self.server.now -= self.here
        self.here = False

    def answer(self, s, caption, mood):
        if s.pause: s.go_on.wait(s.pause)
        if mood == "slow": s.go_on.wait(5)
        if mood == "hang up": self.close_connection = True; return
        if mood == "redirect": return self.send(307, b"", {"Location": s.elsewhere})
        code, _, after = mood.partition(" after ")
        if code.isdigit(): return self.send(int(code), s.said.encode(), {"Retry-After": after} if after else {})
        if mood == "html": return self.send(200, b"<html>welcome</html>")
        if mood == "no choices": return self.send(200, b'{"choices": []}')
        if mood == "huge": return self.send(200, b" " * (5 << 20))
        text = WRONG[mood] if mood in WRONG else Lexicon()([caption])[0]
        data = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        if mood == "cut": return self.send(200, data[:20], {"Content-Length": str(len(data))})
        if mood == "drip":
            self.leave()
            self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
            for b in data:
                if s.go_on.wait(.05): return
                self.wfile.write(bytes([b]))
            return
        self.send(200, data)

    def send(self, code, data, head=()):
        self.leave()
        self.send_response(code)
        for k, v in ({"Content-Length": str(len(data))} | dict(head)).items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def endpoint():
    """`moods[caption]` lists how the next answers to it go wrong, `always[caption]` all of them, `mood` those to any caption; `asked` and `heard` record;
    `most` is the greatest number of requests at once; `pause` seconds pass before each answer."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        s.moods, s.always, s.mood, s.asked, s.heard, s.said = {}, {}, "", [], [], ""
        s.now = s.most = 0
        s.pause, s.elsewhere, s.lock, s.go_on, s.daemon_threads = 0, "", threading.Lock(), threading.Event(), True
        s.url = f"http://127.0.0.1:{s.server_port}/v1"
        with serving(s): yield s
