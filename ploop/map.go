package ploop

import (
	"errors"
)

// Map tells where the disk of a stack lies, base first, in extents that are
// as long as possible, in rising order, without gaps. visit ends it by an
// error, which Map returns. The images are locked for reading meanwhile.
func Map(refs []ImageRef, visit func(Extent) error) error {
	return mapStack(refs, false, visit)
}

// MapDamaged is Map for images that [Options.Damaged] opens.
func MapDamaged(refs []ImageRef, visit func(Extent) error) error {
	return mapStack(refs, true, visit)
}

func mapStack(refs []ImageRef, damaged bool, visit func(Extent) error) error {
	v, err := openView(refs, damaged)
	if err != nil {
		return err
	}
	return errors.Join(v.extents(visit), v.close())
}
