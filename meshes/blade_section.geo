// Section of a cooled turbine blade: lengths in metres.
// A cambered, thick profile with a rounded trailing edge and three cooling channels along its mean line.
//   gmsh -2 -format msh41 blade_section.geo
SetFactory("OpenCASCADE");

chord = 0.05;
camber = 0.18;      // height of the mean line over the chord
thickness = 0.26;   // greatest thickness over the chord
edge = 0.018;       // half thickness of the trailing edge over the chord
count = 24;         // points of each side
size = 0.0125 * chord;

Function HalfThickness  // of the position x along the chord, 0..1: NACA's four digits and a thick trailing edge
  half = 5 * thickness * (0.2969 * Sqrt(x) - 0.1260 * x - 0.3516 * x^2 + 0.2843 * x^3 - 0.1036 * x^4) + edge * x;
Return

Function MeanLine  // its height and the sine and cosine of its slope
  height = 4 * camber * x * (1 - x);
  slope = 4 * camber * (1 - 2 * x);
  cosine = 1 / Sqrt(1 + slope^2);
  sine = slope * cosine;
Return

// The two sides from the leading edge, points dense at both ends.
leading = newp; Point(leading) = {0, 0, 0, size};
suction[] = {leading};
pressure[] = {leading};
For i In {1 : count}
  x = 0.5 * (1 - Cos(Pi * i / count));
  Call HalfThickness;
  Call MeanLine;
  p = newp; Point(p) = {chord * (x - half * sine), chord * (height + half * cosine), 0, size}; suction[] += p;
  p = newp; Point(p) = {chord * (x + half * sine), chord * (height - half * cosine), 0, size}; pressure[] += p;
EndFor
// The rounded end: a half circle around the end of the mean line.
centre = newp; Point(centre) = {chord, 0, 0, size};
tip = newp; Point(tip) = {chord * (1 + edge * cosine), chord * edge * sine, 0, size};

upper = newl; Spline(upper) = suction[];
lower = newl; Spline(lower) = pressure[];
round_up = newl; Circle(round_up) = {suction[count], centre, tip};
round_down = newl; Circle(round_down) = {tip, centre, pressure[count]};
outline = newll; Curve Loop(outline) = {upper, round_up, round_down, -lower};

// The channels: ellipses along the mean line that leave a wall of even thickness.
places[] = {0.17, 0.39, 0.62};
lengths[] = {0.075, 0.085, 0.085};  // half axes along the mean line over the chord
wall = 0.038;
holes[] = {};
loops[] = {outline};
For i In {0 : 2}
  x = places[i];
  Call HalfThickness;
  Call MeanLine;
  l = newl;
  across = half - wall;
  Ellipse(l) = {chord * x, chord * height, 0, chord * Max(lengths[i], across), chord * Min(lengths[i], across), 0, 2 * Pi};
  Rotate {{0, 0, 1}, {chord * x, chord * height, 0}, Atan2(sine, cosine) + (across > lengths[i] ? Pi / 2 : 0)} { Curve{l}; }
  holes[] += l;
  ll = newll; Curve Loop(ll) = {l}; loops[] += ll;
EndFor
section = news; Plane Surface(section) = loops[];

MeshSize {PointsOf{ Curve{holes[]}; }} = size;
Mesh.MeshSizeExtendFromBoundary = 1;
Mesh.Algorithm = 6;

Physical Surface("metal", 1) = {section};
Physical Curve("suction side", 2) = {upper, round_up};
Physical Curve("pressure side", 3) = {lower, round_down};
Physical Curve("channels", 4) = {holes[]};
