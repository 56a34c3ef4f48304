package ploop

import (
	"holdfast/ploop/internal/format"
)

// Kinds of findings.
const (
	FindingHeader     = "header"          // the header contradicts itself or the file
	FindingInUse      = "in-use"          // not closed cleanly
	FindingBeyondDisk = "bat-beyond-disk" // an entry for a cluster that the disk doesn't have
	FindingBelowData  = "bat-below-data"  // an entry that points into header or BAT
	FindingMisaligned = "bat-misaligned"
	FindingBeyondFile = "bat-beyond-file"
	FindingDuplicate  = "bat-duplicate" // two entries for one place
	FindingExtension  = "extension"     // the format extension is damaged
	FindingLeak       = "leak"          // the end of the file isn't used
	FindingGeometry   = "geometry"      // the images don't fit each other
)

var entryFindings = map[format.Problem]string{
	format.EntryBeyondDisk: FindingBeyondDisk,
	format.EntryBelowData:  FindingBelowData,
	format.EntryMisaligned: FindingMisaligned,
	format.EntryBeyondFile: FindingBeyondFile,
	format.EntryCut:        FindingBeyondFile,
	format.EntryDuplicate:  FindingDuplicate,
}

// Finding is one thing that is wrong.
type Finding struct {
	Kind     string `json:"kind"`
	File     string `json:"file"`
	Offset   int64  `json:"offset"` // in bytes; -1: the file as a whole
	Message  string `json:"message"`
	Repaired bool   `json:"repaired"`
	// Needs names what a repair of it must be allowed (see Allowance).
	Needs string `json:"needs,omitempty"`

	fix fix
}

// fix is the step of a repair that mends a finding.
type fix int

const (
	fixNever fix = iota
	fixInUse
	fixHeader
	fixLength
	fixEntry
	fixExtension
	fixLeak
	fixHeld  // not allowed
	numFixes = iota
)

// maxClear bounds how many entries one repair clears.
const maxClear = 1 << 20

// maxFindings bounds the list of one image; the rest is only counted.
const maxFindings = 1000
