"""Flow matching from controls to treated samples: the path between them, its velocity, and how it is followed.

Everything here takes samples of any rank, `(N, ...)`: images, vectors of expression, points of the plane.
"""
