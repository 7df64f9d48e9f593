"""What six feature planes mean: signed distance, colour and deformation at points, and pictures and meshes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fewstep.core.errors import UserError, check
from fewstep.core.rng import Rng
from fewstep.core.tensors import scale_gradient
from fewstep.threed.cameras import Camera
from fewstep.threed.fields.heads import ColourHead, FeatureMLP, SDFHead
from fewstep.threed.fields.meshes import Mesh, extract_mesh, keep_large_parts
from fewstep.threed.fields.normals import eikonal_loss, value_and_gradient
from fewstep.threed.fields.opacity import density_alpha, volsdf_density
from fewstep.threed.fields.rendering import Opacity, box_span, even_edges, neus_opacity, render_rays, volsdf_opacity
from fewstep.threed.fields.triplane import LAYOUTS, sample_triplane, split_planes
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.planes.surfels import surfels
from fewstep.threed.views import Scene, Views


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """How planes are read and rendered.

    ``bound``: half the side of the cube the planes cover; nothing is seen outside it. ``radius`` of the sphere the
    field starts as. ``sections`` of a ray and ``fine`` ones added where the first find something. ``opacity``,
    ``sharpness``: VolSDF's or NeuS's, and its k. ``normals``: whether renders in training have them, at the cost of a
    gradient at every point; teachers that judge pictures alone do without. ``gaussians``: of the cloud made of a mesh.
    ``deform``: whether a mesh's vertices are moved by a head of their own, which only the mesh renderer trains.
    """

    bound: float = 1.0
    radius: float = 0.5
    hidden: int = 64
    layers: int = 2
    layout: Literal["corrected", "original", "image_like"] = "corrected"
    sections: int = 24
    fine: int = 16
    opacity: Literal["volsdf", "neus"] = "neus"
    sharpness: float = 100.0
    normals: bool = True
    gaussians: int = 4000
    deform: bool = False

    def __post_init__(self) -> None:
        check(
            0 < self.radius < self.bound, f"field: radius must lie in (0, bound), got {self.radius:g}, {self.bound:g}"
        )
        check(self.sections >= 1 and self.fine >= 0, "field: a ray needs one section or more, and no negative number")
        check(self.sharpness > 0, f"field.sharpness must be positive, got {self.sharpness:g}")
        check(self.hidden >= 1 and self.layers >= 0, "field: heads need a width of 1 or more and no negative depth")


class FieldHeads(nn.Module):
    """Networks that read planes of ``features`` channels: distance and deformation from their sum, colour from each."""

    def __init__(self, features: int, config: FieldConfig) -> None:
        super().__init__()
        size = {"hidden": config.hidden, "layers": config.layers}
        self.sdf = SDFHead(features, radius=config.radius, **size)
        self.deformation = FeatureMLP(features, 3, zero_last=True, **size) if config.deform else None
        self.colour = ColourHead(3 * features, **size)


class PlaneField:
    """The fields of a batch of objects: feature planes "b 6 c h w" and the heads that read them, with gradient."""

    def __init__(self, planes: Float[Tensor, "b 6 c h w"], heads: FieldHeads, config: FieldConfig) -> None:
        self.geometry, self.texture = split_planes(planes)
        self.heads, self.config, self.layout = heads, config, LAYOUTS[config.layout]
        self.colour_gradient = 1.0  # what is multiplied into the gradient that reaches colours through renders

    def __len__(self) -> int:
        return len(self.geometry)

    def sdf(self, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n"]:
        """Return signed distances, negative inside."""
        return cast(Tensor, self.heads.sdf(self._geometry(points), points))

    def deformation(self, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
        """Return how far a mesh's vertices at ``points`` are moved, in units of its grid's spacing, within half."""
        head = self.heads.deformation
        if head is None:
            raise UserError("this field does not deform its meshes: make it with field.deform")
        return 0.5 * torch.tanh(cast(Tensor, head(self._geometry(points))))

    def colour(self, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
        """Return colours."""
        read = sample_triplane(self.texture, points / self.config.bound, self.layout, "concat")
        return scale_gradient(self.heads.colour(read), self.colour_gradient)

    def _geometry(self, points: Tensor) -> Tensor:
        return sample_triplane(self.geometry, points / self.config.bound, self.layout, "sum")

    def eikonal(self, rng: Rng, points: int) -> Float[Tensor, " b"]:
        """Return the mean of (|gradient| - 1)^2 at so many even points of the cube, per object."""
        at = ((2 * rng.uniform("eikonal", (points, 3)) - 1) * self.config.bound).to(self.geometry)
        _, gradient = value_and_gradient(self.sdf, at, create_graph=torch.is_grad_enabled())
        return eikonal_loss(gradient)

    def only(self, index: int) -> PlaneField:
        """Return one object, a batch of it alone."""
        planes = torch.cat([self.geometry[index : index + 1], self.texture[index : index + 1]], 1)
        out = PlaneField(planes, self.heads, self.config)
        out.colour_gradient = self.colour_gradient
        return out

    def scene(self, index: int) -> PlaneScene:
        """Return one object of the batch, without gradient."""
        planes = torch.cat([self.geometry[index], self.texture[index]]).detach()
        return PlaneScene(planes, self.heads, self.config)

    def views(self, camera: Camera, background: float | Tensor = 1.0, rng: Rng | None = None) -> Views:
        """Return what cameras see by volume rendering; as many per object, an object's next to each other.

        rng: moves the sections of rays at random. Raises UserError for cameras inside the cube or that do not divide.
        """
        count, pixels = len(self), camera.width * camera.height
        check(len(camera) % count == 0, f"{len(camera)} cameras cannot be shared by {count} objects")
        camera.check_outside(self.config.bound)
        camera = camera.to(self.geometry.dtype)
        origins, directions = (each.reshape(count, -1, 3) for each in camera.rays())
        near, far = (each.reshape(count, -1) for each in box_span(origins.flatten(0, 1), directions.flatten(0, 1),
                                                                   self.config.bound))  # fmt: skip
        hits = Hits.of(far > near)
        jitter = None if rng is None else self._jitter(rng, hits, len(camera), pixels)
        edges = even_edges(hits.take(near), hits.take(far), self.config.sections, jitter)
        colours = None
        if isinstance(background, Tensor):
            colours = background.to(origins).repeat_interleave(pixels, 0).reshape(count, -1, 3)
        seen = render_rays(
            self._opacity(rng is None or self.config.normals),
            self._per_object(self.colour),
            hits.take(origins),
            hits.take(directions),
            edges,
            float(background) if not isinstance(background, Tensor) else hits.take(_given(colours)),
            fine=self.config.fine,
            trainable=self.config.normals and torch.is_grad_enabled(),
        )
        forward = camera.world_to_camera[:, None, 2, :3]  # the camera's z in the world: depth is along it
        cosine = (directions.reshape(len(camera), -1, 3) * forward).sum(-1).reshape(count, -1)
        empty = torch.full_like(origins, 1.0) * background if not isinstance(background, Tensor) else _given(colours)
        shape = (len(camera), camera.height, camera.width)
        return Views(
            _picture(hits.put(seen.rgb, empty), shape),
            _picture(hits.put(seen.opacity[:, None], origins.new_zeros(*near.shape, 1)), shape),
            _picture(hits.put(seen.depth[:, None], origins.new_zeros(*near.shape, 1)) * cosine[..., None], shape),
            _picture(hits.put(seen.normal, torch.zeros_like(origins)), shape),
        )

    def _jitter(self, rng: Rng, hits: Hits, cameras: int, pixels: int) -> Tensor:
        check(cameras % len(rng.ids) == 0, f"{cameras} cameras do not divide among {len(rng.ids)} samples")
        drawn = rng.uniform("rays", (cameras // len(rng.ids), pixels, self.config.sections + 1))
        return hits.take(drawn.to(self.geometry).reshape(len(self), -1, drawn.shape[-1]))

    def _per_object(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return a function of points of rays "r n 3", the rays of an object next to each other."""

        def of_rays(points: Tensor) -> Tensor:
            out = function(points.reshape(len(self), -1, 3))
            return out.reshape(*points.shape[:-1], *out.shape[2:])

        return of_rays

    def _opacity(self, normals: bool) -> Opacity:
        sdf, k = self._per_object(self.sdf), self.config.sharpness
        if self.config.opacity == "neus":
            return neus_opacity(sdf, k)
        if normals:
            return volsdf_opacity(sdf, k)

        def plain(points: Tensor, directions: Tensor, lengths: Tensor, trainable: bool) -> tuple[Tensor, Tensor]:
            return density_alpha(volsdf_density(sdf(points), k), lengths), torch.zeros_like(points)

        return plain


@dataclass(frozen=True)
class Hits:
    """Which rays of each object meet the cube: their indices, as many per object, and which of them do."""

    index: Int[Tensor, "b m"]
    real: Bool[Tensor, "b m"]

    @classmethod
    def of(cls, hit: Bool[Tensor, "b n"]) -> Hits:
        """Return the rays that hit, filled up with others where an object has fewer."""
        most = max(int(hit.sum(1).max()), 1)
        index = hit.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(index, hit.gather(1, index))

    def take(self, x: Float[Tensor, "b n *d"]) -> Float[Tensor, "r *d"]:
        """Return the rows of those rays, objects one after another."""
        wide = self.index.reshape(*self.index.shape, *[1] * (x.ndim - 2)).expand(*self.index.shape, *x.shape[2:])
        return x.gather(1, wide).flatten(0, 1)

    def put(self, rows: Float[Tensor, "r d"], into: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return ``into`` with the rows of rays that hit in their places."""
        wide = self.index[..., None].expand(-1, -1, rows.shape[-1])
        old = into.gather(1, wide)
        return into.scatter(1, wide, torch.where(self.real[..., None], rows.reshape(old.shape), old))


class PlaneScene(Scene):
    """One object's planes "6 c h w" and the heads that read them."""

    planes: Tensor

    def __init__(self, planes: Float[Tensor, "6 c h w"], heads: FieldHeads, config: FieldConfig) -> None:
        super().__init__()
        self.register_buffer("planes", planes)
        self.heads, self.config = heads, config
        self._meshes: dict[int, Mesh] = {}

    def field(self) -> PlaneField:
        """Return the field, a batch of one object."""
        return PlaneField(self.planes[None], self.heads, self.config)

    def views(self, camera: Camera, background: float | Tensor = 1.0, rng: Rng | None = None) -> Views:
        """Return what ``camera`` sees by volume rendering."""
        return self.field().views(camera, background, rng)

    def mesh(self, resolution: int = 96) -> Mesh:
        """Return the zero level of the distance with vertex colours, kept once made; UserError where there is none."""
        if resolution in self._meshes:
            return self._meshes[resolution]
        field, bound = self.field(), self.config.bound
        cut = bound * (1 - 1.5 / resolution)  # what leaves the cube is cut off, and closed

        def inside(points: Tensor) -> Tensor:
            return torch.maximum(field.sdf(points), points.abs().amax(-1) - cut)

        found = extract_mesh(at_points(inside), resolution, bound=bound, device=self.planes.device)
        with torch.no_grad():
            found = deformed(field, found, resolution)
        self._meshes[resolution] = keep_large_parts(found).coloured(at_points(field.colour))
        return self._meshes[resolution]

    def colour_field(self) -> Callable[[Tensor], Tensor]:
        """Return the field's colours."""
        return at_points(self.field().colour)

    def gaussians(self) -> Gaussians:
        """Return a cloud of flat Gaussians on the mesh; UserError where there is none."""
        return surfels(self.mesh(), self.config.gaussians)

    def describe(self) -> dict[str, Any]:
        """Return what :meth:`rebuilt` needs besides the tensors."""
        return {"kind": "planes", "field": asdict(self.config)}

    @classmethod
    def rebuilt(cls, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> PlaneScene:
        """Return the scene that was described; KeyError, TypeError, RuntimeError or UserError for what does not fit."""
        config = FieldConfig(**about["field"])
        heads = FieldHeads(state["planes"].shape[1], config)
        made = cls(state["planes"], heads, config)
        made.load_state_dict(dict(state))
        return made.eval().requires_grad_(False)


def at_points(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function of points "*n 3" of one of a field of one object's."""

    def of_points(points: Tensor) -> Tensor:
        out = function(points.reshape(1, -1, 3))[0]
        return out.reshape(*points.shape[:-1], *out.shape[1:])

    return of_points


def deformed(field: PlaneField, mesh: Mesh, resolution: int, gradient: float = 1.0) -> Mesh:
    """Return an object's mesh with its vertices moved as its field says, in units of a grid of ``resolution`` points.

    gradient: what that of the deformation is multiplied with. The mesh itself where the field does not deform.
    """
    if not field.config.deform:
        return mesh
    step = 2 * field.config.bound / (resolution - 1)
    moved = scale_gradient(at_points(field.deformation)(mesh.vertices.detach()), gradient)
    return replace(mesh, vertices=mesh.vertices + step * moved)


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _picture(x: Float[Tensor, "b n d"], shape: tuple[int, int, int]) -> Float[Tensor, "v d h w"]:
    return x.reshape(*shape, x.shape[-1]).movedim(-1, 1)
