package image

// Status is one file of the stack.
type Status struct {
	Path    string `json:"path"`
	Format  string `json:"format"` // raw, ploop1 or ploop2
	Level   int    `json:"level"`
	Direct  bool   `json:"direct"`               // O_DIRECT
	Cached  bool   `json:"cached"`               // what is written may be in the page cache only, until a flush
	Locked  bool   `json:"locked"`               // the file is locked
	Scope   Scope  `json:"lock_scope,omitempty"` // who sees that; empty: nobody, or it isn't open
	Bitmaps int    `json:"bitmaps,omitempty"`    // dirty bitmaps carried

	// Which file is open: st_dev, st_ino, and of a block device st_rdev.
	Dev  uint64 `json:"-"`
	Ino  uint64 `json:"-"`
	Rdev uint64 `json:"-"`
}
