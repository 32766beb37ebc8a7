"""Why a server gets no GPU, or not the ones that were asked for: reason, evidence, way out. Pure."""

from __future__ import annotations

from vmreconcile.core.gpus.choose import obstacles
from vmreconcile.core.gpus.demand import SHARE, gib
from vmreconcile.core.gpus.ground import Ground, flaw_of
from vmreconcile.core.gpus.seats import Seats, least_of, unknown_on
from vmreconcile.core.gpus.share import Overfull
from vmreconcile.core.gpus.tenants import Tenant, was_told
from vmreconcile.core.gpus.visible import VISIBLE, reads_uuids
from vmreconcile.model.observed import HostView
from vmreconcile.model.plan import Block, Reason
from vmreconcile.vllm.memory.predict import CONTEXT


def unseen(tenant: Tenant, host: HostView) -> Block | None:
    """GPUs were asked for by number, or what runs was given some, on a host that shows none."""
    asked = f"gpus: {_written(tenant)} is asked for"
    if not isinstance(tenant.server.gpus, tuple | int):
        asked = "it runs on GPUs" if was_told(tenant) and VISIBLE not in tenant.server.env else ""
    if host.gpus or not asked:
        return None
    note = f"{asked}, and {host.host} shows no GPU: {host.gpu_problem or 'none was found'}"
    remedy = "mend the driver there (vmreconcile doctor), or leave gpus out: vLLM then takes what it finds"
    return Block(reason=Reason.GPU_MISSING, note=note, remedy=remedy)


def listed_wrongly(tenant: Tenant, ground: Ground) -> Block | None:
    """Something is wrong with GPUs that were asked for one by one."""
    there = ", ".join(str(gpu.index) for gpu in ground.gpus.values() if not gpu.parent)
    there_already = tenant.now if tenant.runs else ()
    for word in tenant.listed:
        gpu = ground.gpu(word)
        if gpu is None:
            note = f"there is no GPU {word} here, only {there}" + (f" ({ground.problem})" if ground.problem else "")
            return Block(reason=Reason.GPU_MISSING, note=note, remedy=f"change gpus ({_place(tenant)})")
        if flaw := flaw_of(gpu):
            remedy = f"give other GPUs, or leave gpus out ({_place(tenant)})"
            return Block(reason=Reason.GPU_UNUSABLE, note=f"{gpu.label} {flaw}", remedy=remedy)
        if gpu.uuid in ground.cordoned and gpu.uuid not in there_already:
            remedy = "take it out of vllm_cordoned_gpus, or give other GPUs"
            return Block(reason=Reason.CORDONED, note=f"{gpu.label} is cordoned", remedy=remedy)
        if gpu.parent and len(tenant.listed) > 1:
            note = f"{gpu.label} is an instance (MIG), and a group cannot be made of those"
            return Block(reason=Reason.GPU_UNUSABLE, note=note, remedy="give whole GPUs")
    return None


def too_old(tenant: Tenant, devices: tuple[str, ...], ground: Ground) -> Block | None:
    """An instance cannot be named to a vLLM that only reads numbers."""
    instance = next((ground.gpus[uuid] for uuid in devices if ground.gpus[uuid].parent), None)
    if instance is None or reads_uuids(tenant.version):
        return None
    note = f"{instance.label} can only be named by its UUID, which vLLM {tenant.version} cannot read (0.24.0 can)"
    return Block(reason=Reason.GPU_UNUSABLE, note=note, remedy="upgrade vLLM there, or give this server a whole GPU")


def nowhere(tenant: Tenant, seats: Seats) -> Block:
    """No GPU could be found; each of them with what is against it."""
    unknown = tenant.demand(next(iter(seats.ground.gpus))) if seats.ground.gpus else ""
    against = "; ".join(obstacles(tenant, seats))
    if isinstance(unknown, str) and tenant.number is None and _could_share(tenant, seats):
        note = f"no GPU is free, and how one could be shared is not known: {unknown}. {against}"
        remedy = f"write {SHARE} for it, or give it another host"
        return Block(reason=Reason.MEMORY_UNKNOWN, note=note, remedy=remedy)
    remedy = "stop something there, give it another host, or write smaller numbers"
    if not isinstance(unknown, str) and all(
        unknown.total > seats.ground.cards[uuid].total - CONTEXT for uuid in seats.ground.gpus
    ):
        note = f"it needs {gib(unknown.total)} GiB of each GPU ({unknown.basis}). {against}"
        return Block(reason=Reason.DOES_NOT_FIT, note=note, remedy=_smaller(tenant))
    wanted = "1 GPU" if tenant.count == 1 else f"{tenant.count} GPUs"
    return Block(reason=Reason.TOO_FEW_GPUS, note=f"no room for {wanted}. {against}", remedy=remedy)


def _could_share(tenant: Tenant, seats: Seats) -> bool:
    usable = [uuid for uuid, gpu in seats.ground.gpus.items() if not flaw_of(gpu) and uuid not in seats.ground.cordoned]
    return len(usable) >= tenant.count


def _smaller(tenant: Tenant) -> str:
    sizes = "tensor_parallel_size larger, max_model_len or max_num_seqs smaller"
    return f"make {sizes}, or take a quantised model; vmreconcile fit {tenant.id} shows the terms"


def overfull(found: Overfull, seats: Seats) -> Block:
    """A GPU on which more is asked for than there is."""
    ground, uuid = seats.ground, found.uuid
    gpu, total = ground.gpus[uuid], ground.cards[uuid].total
    held = ground.held(uuid)
    asks = [f"{each.id.local} {_ask(each, uuid, ground)}" for each in seats.on(uuid)]
    unknown = dict(unknown_on(seats, uuid)) if len(asks) > 1 or held else {}
    if unknown:
        names = "; ".join(f"{tenant.id.local}: {reason}" for tenant, reason in unknown.items())
        note = f"{gpu.label} would be shared ({', '.join(asks)}), and how is not known: {names}"
        return Block(reason=Reason.MEMORY_UNKNOWN, note=note, remedy=f"write {SHARE} for each of them")
    if held:
        who = ", ".join(f"{gib(holder.size)} by {holder.who}" for holder in ground.others[uuid])
        note = f"{gpu.label}: {gib(held)} of {gib(total)} GiB held, {who}; {', '.join(asks)}"
        remedy = "end that, give this server another GPU, or a smaller gpu_memory_utilization"
        return Block(reason=Reason.GPU_MEMORY_HELD, note=note, remedy=remedy)
    if len(asks) == 1:
        note = f"{gpu.label} has {gib(total)} GiB; {asks[0]}"
        return Block(reason=Reason.DOES_NOT_FIT, note=note, remedy=_smaller(found.last))
    note = f"{gpu.label} has {gib(total)} GiB; {', '.join(asks)}; CUDA takes {gib(CONTEXT)} more for each"
    remedy = "make the numbers smaller, or give one of them another GPU"
    return Block(reason=Reason.GPU_OVERCOMMITTED, note=note, remedy=remedy)


def _ask(tenant: Tenant, uuid: str, ground: Ground) -> str:
    if tenant.number is not None and SHARE in tenant.server.settings:
        size = gib(tenant.number * ground.cards[uuid].total)
        return f"asks for {tenant.number:g} of it, {size} GiB ({tenant.server.settings[SHARE].origin})"
    if tenant.runs and tenant.runs_with is not None and (tenant.chosen or tenant.number is not None):
        return f"has {gib(tenant.runs_with * ground.cards[uuid].total)} GiB"
    least = least_of(tenant, uuid, ground, shrunk=True)
    return f"needs {gib(least)} GiB" if least is not None else f"takes vLLM's default, {tenant.default:g}"


def _written(tenant: Tenant) -> str:
    gpus = tenant.server.gpus
    return f"[{', '.join(map(str, gpus))}]" if isinstance(gpus, tuple) else str(gpus)


def _place(tenant: Tenant) -> str:
    origin = tenant.server.origins.get("gpus")
    return str(origin) if origin else f"models.d, {tenant.id.model}"
