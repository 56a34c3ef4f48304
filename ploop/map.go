package ploop

import (
	"errors"

	"holdfast/ploop/internal/chain"
)

// Map tells where the disk of a stack lies, base first, in extents that are
// as long as possible, in rising order, without gaps. visit ends it by an
// error, which Map returns. The images are locked for reading meanwhile.
func Map(refs []ImageRef, visit func(Extent) error) error {
	return mapStack(refs, false, visit)
}

// MapDamaged is Map for images with bad BAT entries or a wrong data_off as well: what they have
// lost is in extents that say so.
func MapDamaged(refs []ImageRef, visit func(Extent) error) error {
	return mapStack(refs, true, visit)
}

func mapStack(refs []ImageRef, damaged bool, visit func(Extent) error) error {
	v, err := chain.Open(refs, damaged)
	if err != nil {
		return err
	}
	return errors.Join(v.Extents(visit), v.Close())
}
