"""What the host's own Python runs to fetch a model: a program as text, for an interpreter that is not ours.

It reads one JSON line with everything, the token too, so that its arguments and environment hold none. It says one
JSON line for each thing worth saying, and ends as soon as its standard input does, so that it outlives nobody.
"""

PREFIX = "VMRECONCILE-FETCH "

PROGRAM = r"""
import sys
sys.path[:] = [path for path in sys.path if path]  # nothing of the folder that this was started in
import errno, json, os, re, threading
spec = json.loads(sys.stdin.readline())
os.environ.update(spec["env"])
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

def say(**fields):
    sys.stdout.write("VMRECONCILE-FETCH " + json.dumps(fields) + "\n")
    sys.stdout.flush()

def watch_input():
    while sys.stdin.read(1):
        pass
    os._exit(3)

threading.Thread(target=watch_input, daemon=True).start()
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
WORSE = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".gguf", ".nemo")

def wanted(names, load_format):
    if load_format not in ("auto", "hf", "safetensors", ""):
        return sorted(names)
    for best in (".safetensors", ".bin", ".pt"):
        if any(name.endswith(best) for name in names):
            dropped = tuple(ending for ending in WORSE if ending != best)
            return sorted(name for name in names if not name.endswith(dropped))
    return sorted(names)

def present(folder, follow=False):
    total = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    for entry in entries:
        try:
            total += entry.stat(follow_symlinks=follow).st_size
        except OSError:
            pass
    return total

def report(folder, before, total, over):
    while not over.wait(1.0):
        say(event="at", done=max(0, present(folder) - before), total=total)

def on_disk(folder, names):
    paths = [os.path.join(folder, name) for name in names]
    return sum(os.path.getsize(path) for path in paths if os.path.exists(path))

def kind_of(error):
    names = [each.__name__ for each in type(error).__mro__]
    if "OfflineModeIsEnabled" in names:
        return "offline"
    cause = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", 0)
    headers = response.headers if response is not None else {}
    code = headers.get("X-Error-Code", "")
    if response is not None and not code and not headers.get("X-Error-Message"):
        return "hub_unreachable"
    if code == "GatedRepo" or status == 403:
        return "gated"
    if code == "RevisionNotFound" or "RevisionNotFoundError" in names:
        return "revision_not_found"
    if status == 401 and spec["token"] and code != "RepoNotFound":
        return "bad_token"
    if code == "RepoNotFound" or status in (401, 404) or "HFValidationError" in names:
        return "no_such_repo"
    if isinstance(error, Untrusted):
        return "untrusted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no_permission"
    if isinstance(error, OSError) and error.errno and error.filename:
        return "disk_error"
    return "hub_unreachable"

class Untrusted(Exception):
    pass

def checked(name, value):
    # These become paths in the cache: no answer may lead out of it.
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
        raise Untrusted("the answer of the Hub has an odd %s" % name)

def guard():
    from huggingface_hub import HfApi, file_download
    about, of_file = HfApi.model_info, file_download.get_hf_file_metadata
    def model_info(*args, **more):
        seen = about(*args, **more)
        checked("commit", seen.sha)
        return seen
    def get_hf_file_metadata(*args, **more):
        seen = of_file(*args, **more)
        for name, value in (("commit", seen.commit_hash), ("etag", seen.etag)):
            if value is not None:
                checked(name, value)
        return seen
    HfApi.model_info, file_download.get_hf_file_metadata = model_info, get_hf_file_metadata

asked = set()

def whole():
    # The folder of the model's files, where a copy in the cache lacks none that the Hub or its own index names.
    from huggingface_hub import try_to_load_from_cache
    config = try_to_load_from_cache(spec["model"], "config.json", revision=spec["revision"] or None)
    if not isinstance(config, str):
        return None
    folder = os.path.dirname(config)
    names = set(os.path.relpath(os.path.join(at, n), folder) for at, _, rest in os.walk(folder) for n in rest)
    wants = asked | {"config.json"}
    for name in names:
        if name.endswith(".index.json"):
            with open(os.path.join(folder, name)) as file:
                wants.update(json.load(file).get("weight_map", {}).values())
        parts = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.\w+)", name)
        if parts:
            wants.update("%s-%05d-of-%s%s" % (parts[1], n + 1, parts[2], parts[3]) for n in range(int(parts[2])))
    weights = any(name.endswith(WEIGHTS) for name in names)
    return folder if weights and all(os.path.exists(os.path.join(folder, name)) for name in wants) else None

def run():
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
    import glob, shutil
    guard()
    model, revision, token = spec["model"], spec["revision"] or None, spec["token"] or False
    seen = HfApi(token=token).model_info(model, revision=revision, files_metadata=True, timeout=30)
    sizes = {each.rfilename: each.size or 0 for each in seen.siblings or []}
    names = wanted(sizes, spec["load_format"])
    asked.update(names)
    missing = [n for n in names if not isinstance(try_to_load_from_cache(model, n, revision=seen.sha), str)]
    cache = constants.HF_HUB_CACHE
    blobs = os.path.join(cache, "models--" + model.replace("/", "--"), "blobs")
    need = sum(sizes[n] for n in missing)
    there = cache
    while not os.path.exists(there):
        there = os.path.dirname(there)
    free = shutil.disk_usage(there).free
    say(event="size", need=need, free=free, total=sum(sizes[n] for n in names), path=cache, files=len(missing))
    if need > free:
        say(event="failed", kind="disk_full", message="%d bytes are needed in %s, %d are free" % (need, cache, free))
        return 1
    over = threading.Event()
    arguments = (blobs, present(blobs), need, over)
    threading.Thread(target=report, args=arguments, daemon=True).start()
    patterns = [glob.escape(name) for name in names]
    folder = snapshot_download(model, revision=revision, allow_patterns=patterns, token=token)
    over.set()
    say(event="done", fetched=on_disk(folder, missing), total=on_disk(folder, names), path=cache)
    return 0

try:
    code = run()
except ImportError as error:
    say(event="failed", kind="no_hub", message="%s has no huggingface_hub: %s" % (sys.executable, error))
    code = 1
except Exception as error:
    kind = kind_of(error)
    there = whole() if kind in ("hub_unreachable", "offline") else None
    if there:
        # Nobody can say whether it is the newest; it is what a server would load now.
        from huggingface_hub import constants
        say(event="done", fetched=0, total=present(there, follow=True), path=constants.HF_HUB_CACHE)
        os._exit(0)
    text = str(getattr(error, "server_message", None) or error) or type(error).__name__
    if spec["token"]:
        text = text.replace(spec["token"], "***")
    say(event="failed", kind=kind, message=" ".join(text.split())[:300])
    code = 1
os._exit(code)
"""
