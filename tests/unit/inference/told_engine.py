"""An engine that says what it is told to, for tests of what is made of that."""

from llm_inference.engine.interface import Capacity, GenerationEngine, Load

CHATS = "{% for message in messages %}{{ message.content }} {% endfor %}"


class Stream:
    """Gives its events one at a time, or all at once."""

    def __init__(self, events, *, at_once=False):
        self.events = list(events)
        self.at_once = at_once
        self.cancelled = False

    async def next_events(self):
        count = len(self.events) if self.at_once else 1
        taken, self.events = self.events[:count], self.events[count:]
        return taken

    def cancel(self):
        self.cancelled = True


class Codec:
    """A token is a word, whose id is its length."""

    def __init__(self, chat_template=""):
        self.chat_template = chat_template
        self.has_chat_template = bool(chat_template)
        self.chats = []

    def added_token(self, text):
        return None

    def encode(self, text, *, special_tokens=True):
        return [len(word) for word in text.split()]

    def encode_chat(self, messages, *, tools=(), add_generation_prompt=True):
        self.chats.append((messages, tools, add_generation_prompt))
        return self.encode(" ".join(message["content"] for message in messages))

    def decode(self, tokens):
        return " ".join("x" * token for token in tokens)

    def token_bytes(self, token):
        return b"x" * token


class Engine(GenerationEngine):
    capacity = Capacity(max_length=32, max_concurrency=4, max_queue=4, vocabulary=50)
    alive = True
    stalled_seconds = 0.0

    def __init__(self, events=(), refusal=None, chat_template="", *, at_once=False):
        self.events, self.refusal, self.at_once = events, refusal, at_once
        self.codec = Codec(chat_template)
        self.streams = []
        self.requests = []
        self.grammars = []

    def load(self):
        return Load(running=1, waiting=2, cache_usage=0.5)

    def compile(self, grammar):
        self.grammars.append(grammar)
        return grammar

    def submit(self, request):
        if self.refusal:
            raise self.refusal
        self.requests.append(request)
        self.streams.append(Stream(self.events, at_once=self.at_once))
        return self.streams[-1]

    async def close(self): ...
