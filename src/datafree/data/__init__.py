"""Image files and labelled folders: classes, masks, COCO and YOLO boxes; drawing."""
