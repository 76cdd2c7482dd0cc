"""The page of a run: `report.html`, one file that shows what happened, made from what the run directory holds.

reading.py reads a directory that is not trusted and names what is missing; measure.py writes what only a running
process can know; charts.py and strips.py draw; page.py puts it together; keeper.py keeps it fresh while a run goes on,
watch.py serves it.
"""
