"""A stand-in for the agent, sent in the bootstrap's place: misbehaves on request. Runs on the host, imports nothing."""

SOURCE = r"""
import json, os, sys, time

out, inp = sys.stdout.buffer, sys.stdin.buffer


def say(**answer):
    out.write(b"VMRECONCILE/1 " + json.dumps(answer).encode() + b"\n")
    out.flush()


def act(request, number):
    do = request["do"]
    if do == "echo":
        say(id=number, ok=True, got=request.get("text"), argv=sys.argv[1:], env=dict(os.environ), uid=os.getuid())
    elif do == "big":
        say(id=number, ok=True, received=len(request["text"]), text="x" * request["answer"])
    elif do == "noise":
        os.write(1, b"Welcome!\r\n\xff\xfe not text\nVMRECONCILE/2 {}\nVMRECONCILE/1\n" + b"y" * 300000 + b"\n")
        say(id=99, ok=True, wrong=True)
        os.write(1, b"VMRECONCILE/1 {\"id\": ")
        time.sleep(0.05)
        os.write(1, b"%d, \"ok\": true}\r\n" % number)
    elif do == "stderr":
        for _ in range(80):
            os.write(2, b"e" * 65536)
        say(id=number, ok=True)
    elif do == "progress":
        for index in range(3):
            say(id=number, ok=True, more=True, index=index)
        say(id=number, ok=True, changed=True)
    elif do == "endless":
        while True:
            say(id=number, ok=True, more=True)
            time.sleep(0.01)
    elif do == "odd":
        say(id=number, ok=False, error={"class": request["class"], "message": request["text"]})
    elif do == "fail":
        say(id=number, ok=False, index=2, error={"class": "disk-full", "message": "no space left", "path": "/x"})
    elif do == "die":
        os.write(2, ("the last words hold " + request["token"] + "\n").encode())
        os._exit(3)
    elif do == "half":
        os.write(1, b"VMRECONCILE/1 {\"id\": 1, \"ok\": tr")
        os.write(2, b"hanging\n")
        time.sleep(30)
    elif do == "garbage":
        os.write(1, b"VMRECONCILE/1 {nonsense\n")
    elif do == "need":
        os.write(1, b"VMRECONCILE/1 need\n")
        word, size = inp.readline().split()
        content = inp.read(int(size))
        say(id=number, ok=True, word=word.decode(), size=len(content))
    elif do == "slow":
        time.sleep(request["seconds"])
        with open(request["path"], "w") as file:
            file.write("finished")
        say(id=number, ok=True)


while inp.readline() != b"VMRECONCILE/1\n":
    pass
for line in inp:
    request = json.loads(line)
    act(request, request["id"])
"""
