package api

import (
	"encoding"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/ploop/image"
)

// Spec says what a device is to be. It is plain data: printed, stored, compared.
type Spec struct {
	Name     string      `json:"name"`
	Images   []image.Ref `json:"images"` // base first, absolute paths
	ReadOnly bool        `json:"read_only,omitempty"`
	// Damaged serves, read-only, images with bad BAT entries or a wrong data_off; reads of
	// what they have lost fail with EIO.
	Damaged  bool   `json:"damaged,omitempty"`
	Queues   int    `json:"queues,omitempty"`    // 0: one per processor, at most 4
	Depth    int    `json:"depth,omitempty"`     // requests in flight per queue; 0: 128
	DataPath string `json:"data_path,omitempty"` // "auto" or "" (the best the kernel has), "copy", "zero-copy"
	// LogicalBlockSize is the device's smallest addressable unit, in bytes; 0: 512.
	LogicalBlockSize int `json:"logical_block_size,omitempty"`

	// StandbyErrors is the trigger set by the errors' names (EBUSY); empty:
	// standby.DefaultTriggers.
	StandbyErrors []string `json:"standby_errors,omitempty"`
	// StandbyTimeout is how long a standby may hold requests, before all of them
	// and new ones fail; 0: for ever.
	StandbyTimeout Duration `json:"standby_timeout,omitempty"`
	// Resume is how a standby ends: ResumeManual, which is also "", or ResumeReopen. In JSON it
	// has the name that records, and servers of other versions, know it by; so has OnResumed.
	Resume string `json:"recovery,omitempty"`
	// RecoverPolicy is what becomes of the device while it can't be recovered after the
	// death of its server: RecoverWait, which is also "", or RecoverFail.
	RecoverPolicy string `json:"recover_policy,omitempty"`
	// RecoverTimeout is how long RecoverFail waits before it fails I/O; 0:
	// DefaultRecoverTimeout.
	RecoverTimeout Duration `json:"recover_timeout,omitempty"`
	// Persist has the device created again after a reboot, and after a stop of all servers,
	// until it is removed.
	Persist bool `json:"persist,omitempty"`
	// OnStandby and OnResumed are programs for whoever owns the device to run
	// when it goes to standby and when it resumes; absolute paths.
	OnStandby string `json:"on_standby,omitempty"`
	OnResumed string `json:"on_recovered,omitempty"`
}

// How a device gets out of standby.
const (
	ResumeManual = "manual" // by Replace only
	ResumeReopen = "reopen" // also by opening the same files anew, when they answer and are unchanged
)

// What becomes of a device that can't be recovered.
const (
	RecoverWait = "wait" // its requests wait
	RecoverFail = "fail" // they fail with EIO after RecoverTimeout
)

// DefaultRecoverTimeout is how long RecoverFail waits unless told otherwise.
const DefaultRecoverTimeout = 30 * time.Second

// Duration is a time.Duration that JSON says as in "1m30s".
type Duration time.Duration

var (
	_ encoding.TextMarshaler   = Duration(0)
	_ encoding.TextUnmarshaler = (*Duration)(nil)
)

// MarshalText is the duration in Go's notation.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText takes Go's notation.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// DataPaths are the names that a spec may have.
var DataPaths = []string{"", "auto", "copy", "zero-copy"}

// The driver's bounds (UBLK_MAX_NR_QUEUES, UBLK_MAX_QUEUE_DEPTH in linux/ublk_cmd.h).
const (
	MaxQueues = 4096
	MaxDepth  = 4096
)

// IsName says whether a device's name could be this: it is part of paths and of units' names.
func IsName(s string) bool { return isWord(s, "._-") }

// IsConsumer says whether a lease's holder could be called so.
func IsConsumer(s string) bool { return isWord(s, "._:-") }

// isWord says whether s is 1 to 64 letters, digits and, but for the first, marks. Every server
// starts with it: to compile a regular expression would take longer, and memory.
func isWord(s, marks string) bool {
	for i := range len(s) {
		c := s[i]
		if letter := c|0x20 >= 'a' && c|0x20 <= 'z'; !letter && !isDigits(s[i:i+1]) && (i == 0 || strings.IndexByte(marks, c) < 0) {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 64
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// isKernels says that the kernel's driver names its nodes so.
func isKernels(name string) bool {
	rest, ok := strings.CutPrefix(name, "ublk")
	return ok && rest != "" && (rest[0] == 'b' || rest[0] == 'c') && isDigits(rest[1:])
}

// CheckName says what is wrong with the name of a device.
func CheckName(name string) error {
	if !IsName(name) {
		return fmt.Errorf("device name %q: want 1 to 64 of a-z A-Z 0-9 . _ -, the first a letter or digit", name)
	}
	if isKernels(name) {
		return fmt.Errorf("device name %q: names like the kernel's own (ublkb0) are not for devices", name)
	}
	return nil
}

// Validate says what is wrong with a spec by itself, without looking at files.
func (s *Spec) Validate() error {
	if err := CheckName(s.Name); err != nil {
		return err
	}
	if len(s.Images) == 0 {
		return fmt.Errorf("device %s: no image given", s.Name)
	}
	if len(s.Images) > image.MaxDeltas {
		return fmt.Errorf("device %s: %d images, at most %d", s.Name, len(s.Images), image.MaxDeltas)
	}
	for i, r := range s.Images {
		switch {
		case !filepath.IsAbs(r.Path):
			return fmt.Errorf("device %s: image %q: the path is not absolute", s.Name, r.Path)
		case strings.ContainsRune(r.Path, 0):
			return fmt.Errorf("device %s: image %q: the path has a zero byte", s.Name, r.Path)
		case r.Raw && i > 0:
			return fmt.Errorf("device %s: image %q: only the base may be raw", s.Name, r.Path)
		}
	}
	if s.Damaged && !s.ReadOnly {
		return fmt.Errorf("device %s: damaged images are served read-only", s.Name)
	}
	if s.Queues < 0 || s.Queues > MaxQueues {
		return fmt.Errorf("device %s: %d queues, want 1 to %d (0: default)", s.Name, s.Queues, MaxQueues)
	}
	if s.Depth < 0 || s.Depth > MaxDepth {
		return fmt.Errorf("device %s: depth %d, want 1 to %d (0: default)", s.Name, s.Depth, MaxDepth)
	}
	if !slices.Contains(DataPaths, s.DataPath) {
		return fmt.Errorf("device %s: data path %q, want auto, copy or zero-copy", s.Name, s.DataPath)
	}
	switch s.LogicalBlockSize {
	case 0, 512, 1024, 2048, 4096:
	default:
		return fmt.Errorf("device %s: logical block size %d, want 512, 1024, 2048 or 4096", s.Name, s.LogicalBlockSize)
	}
	return s.validateStandby()
}

func (s *Spec) validateStandby() error {
	if _, err := Triggers(s.StandbyErrors); err != nil {
		return fmt.Errorf("device %s: %w", s.Name, err)
	}
	if s.StandbyTimeout < 0 {
		return fmt.Errorf("device %s: standby time-out %v: want 0 (none) or more", s.Name, time.Duration(s.StandbyTimeout))
	}
	switch s.Resume {
	case "", ResumeManual, ResumeReopen:
	default:
		return fmt.Errorf("device %s: resume %q, want manual or reopen", s.Name, s.Resume)
	}
	switch s.RecoverPolicy {
	case "", RecoverWait, RecoverFail:
	default:
		return fmt.Errorf("device %s: recover policy %q, want wait or fail", s.Name, s.RecoverPolicy)
	}
	if s.RecoverTimeout < 0 {
		return fmt.Errorf("device %s: recover time-out %v: want 0 (the default) or more", s.Name, time.Duration(s.RecoverTimeout))
	}
	for _, hook := range []string{s.OnStandby, s.OnResumed} {
		if hook != "" && !filepath.IsAbs(hook) {
			return fmt.Errorf("device %s: hook %q: the path is not absolute", s.Name, hook)
		}
		if strings.ContainsRune(hook, 0) {
			return fmt.Errorf("device %s: hook %q: the path has a zero byte", s.Name, hook)
		}
	}
	return nil
}
