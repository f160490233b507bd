"""Sizes and times in the words that people read; bytes are counted as PostgreSQL does, 1 kB being 1024."""

from __future__ import annotations

from datetime import timedelta


def size_text(size: int) -> str:
    """Write a number of bytes with two or three digits that matter: ``56 bytes``, ``16 MB``, ``1.2 GB``."""
    if abs(size) < 1024:
        return f"{size} bytes" if abs(size) != 1 else f"{size} byte"
    value = float(size)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1024
        # 1023.6 must not be written as 1024 of a unit whose next one begins there.
        if abs(value) < 1023.5 or unit == "PB":
            break
    return f"{value:.1f} {unit}" if abs(value) < 9.95 else f"{value:.0f} {unit}"


def duration_text(duration: timedelta) -> str:
    """Write a time with its two largest units: ``12 s``, ``3 h 20 min``, ``4 d 2 h``."""
    seconds = max(int(duration.total_seconds()), 0)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{seconds} s"
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"
