// Cross-section of a finned heat sink on a chip: lengths in metres.
// An aluminium base carries seven fins of unequal height with rounded tips and filleted roots;
// a copper slug sits in the base above the contact with the chip.
//   gmsh -2 -format msh41 heat_sink.geo
SetFactory("OpenCASCADE");
mm = 1e-3;

width = 60 * mm;             // of the base
base = 8 * mm;               // thickness of the base
fin = 2.6 * mm;              // thickness of a fin
root = 1 * mm;               // radius of the fillets at the roots
chip = 16 * mm;              // width of the contact
slug_width = 22 * mm;        // of the copper, wider than the chip so that it spreads the heat
slug_height = 4 * mm;
slug_corner = 1 * mm;        // radius of the upper corners of the copper
count = 7;
pitch = (width - fin) / (count - 1);
heights[] = {17 * mm, 22 * mm, 26 * mm, 28 * mm, 25 * mm, 20 * mm, 15 * mm};

// The outline, from the lower left corner along the bottom and back over the fins.
start = newp;
Point(newp) = {0, 0, 0};
bottom[] = {};
p = newp; Point(p) = {(width - slug_width) / 2, 0, 0}; slug_left = p;
p = newp; Point(p) = {(width - chip) / 2, 0, 0}; chip_left = p;
p = newp; Point(p) = {(width + chip) / 2, 0, 0}; chip_right = p;
p = newp; Point(p) = {(width + slug_width) / 2, 0, 0}; slug_right = p;
p = newp; Point(p) = {width, 0, 0}; corner_right = p;

l = newl; Line(l) = {start, slug_left}; bottom[] += l;
l = newl; Line(l) = {slug_left, chip_left}; left_rim = l; bottom[] += l;
l = newl; Line(l) = {chip_left, chip_right}; contact = l; bottom[] += l;
l = newl; Line(l) = {chip_right, slug_right}; right_rim = l; bottom[] += l;
l = newl; Line(l) = {slug_right, corner_right}; bottom[] += l;

// The fins from right to left. The outer faces of the first and last fin run straight down to the base.
air[] = {};
fillets[] = {};
previous = corner_right;
For i In {count - 1 : 0 : -1}
  x = i * pitch;
  top = base + heights[i] - fin / 2;
  If (i < count - 1)
    // across the base to this fin, then round its right root
    a = newp; Point(a) = {x + fin + root, base, 0};
    c = newp; Point(c) = {x + fin + root, base + root, 0};
    b = newp; Point(b) = {x + fin, base + root, 0};
    l = newl; Line(l) = {previous, a}; air[] += l;
    l = newl; Circle(l) = {a, c, b}; air[] += l; fillets[] += l;
    previous = b;
  Else
    b = newp; Point(b) = {width, base, 0};
    l = newl; Line(l) = {previous, b}; edge_right = l;
    previous = b;
  EndIf
  // up, over the rounded tip, and down
  a = newp; Point(a) = {x + fin, top, 0};
  c = newp; Point(c) = {x + fin / 2, top, 0};
  m = newp; Point(m) = {x + fin / 2, top + fin / 2, 0};
  b = newp; Point(b) = {x, top, 0};
  l = newl; Line(l) = {previous, a}; air[] += l;
  l = newl; Circle(l) = {a, c, m}; air[] += l;
  l = newl; Circle(l) = {m, c, b}; air[] += l;
  If (i > 0)
    a = newp; Point(a) = {x, base + root, 0};
    c = newp; Point(c) = {x - root, base + root, 0};
    d = newp; Point(d) = {x - root, base, 0};
    l = newl; Line(l) = {b, a}; air[] += l;
    l = newl; Circle(l) = {a, c, d}; air[] += l; fillets[] += l;
    previous = d;
  Else
    a = newp; Point(a) = {0, base, 0};
    l = newl; Line(l) = {b, a}; air[] += l;
    l = newl; Line(l) = {a, start}; edge_left = l;
  EndIf
EndFor

// The border between copper and aluminium.
h = slug_height; r = slug_corner;
xl = (width - slug_width) / 2; xr = (width + slug_width) / 2;
a = newp; Point(a) = {xr, h - r, 0};
b = newp; Point(b) = {xr - r, h - r, 0};
c = newp; Point(c) = {xr - r, h, 0};
d = newp; Point(d) = {xl + r, h, 0};
e = newp; Point(e) = {xl + r, h - r, 0};
f = newp; Point(f) = {xl, h - r, 0};
border[] = {};
l = newl; Line(l) = {slug_right, a}; border[] += l;
l = newl; Circle(l) = {a, b, c}; border[] += l; fillets[] += l;
l = newl; Line(l) = {c, d}; border[] += l;
l = newl; Circle(l) = {d, e, f}; border[] += l; fillets[] += l;
l = newl; Line(l) = {f, slug_left}; border[] += l;

slug = newll; Curve Loop(slug) = {left_rim, contact, right_rim, border[]};
copper = news; Plane Surface(copper) = {slug};
outline = newll; Curve Loop(outline) = {bottom[0], -border[4], -border[3], -border[2], -border[1], -border[0],
                                        bottom[4], edge_right, air[], edge_left};
aluminium = news; Plane Surface(aluminium) = {outline};

Physical Surface("aluminium", 1) = {aluminium};
Physical Surface("copper", 2) = {copper};
Physical Curve("chip", 3) = {contact};
Physical Curve("fins", 4) = {air[]};
Physical Curve("sides", 5) = {bottom[0], left_rim, right_rim, bottom[4], edge_left, edge_right};

// Fine at the fillets and the ends of the contact, where the flux is steep; coarse elsewhere.
Field[1] = Distance;
Field[1].CurvesList = {fillets[]};
Field[1].PointsList = {chip_left, chip_right};
Field[1].Sampling = 20;
Field[2] = Threshold;
Field[2].InField = 1;
Field[2].SizeMin = 0.25 * mm;
Field[2].SizeMax = 0.75 * mm;
Field[2].DistMin = 0.5 * mm;
Field[2].DistMax = 5 * mm;
Field[3] = Distance;
Field[3].CurvesList = {contact};
Field[3].Sampling = 100;
Field[4] = Threshold;
Field[4].InField = 3;
Field[4].SizeMin = 0.4 * mm;
Field[4].SizeMax = 0.75 * mm;
Field[4].DistMin = 1 * mm;
Field[4].DistMax = 6 * mm;
Field[5] = Min;
Field[5].FieldsList = {2, 4};
Background Field = 5;
Mesh.MeshSizeExtendFromBoundary = 0;
Mesh.MeshSizeFromPoints = 0;
Mesh.Algorithm = 6;
