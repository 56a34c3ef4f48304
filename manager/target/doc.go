// Package target sees which block devices SCSI targets on this host export: LIO, SCST
// and tgt. It reads what these show of themselves and changes nothing.
//
// A target names its backing device by a path, which may be a link, a partition, or a
// device that is stacked on another (device mapper, MD, loop). What counts is the
// disk at the bottom, so a path is followed down to the whole disks below it.
//
// # What is told
//
// Scan takes one picture, Watch calls for the first one and each that differs. A kind
// of target that can't be read now keeps what was last known of it, with the error:
// "gone" is only said of what was not there in a picture that was read wholly. It
// matters, because who drops a device's lease while it holds requests fails them.
//
// Entries come and go, and are configured in steps, while they are read: what is not
// complete yet is not there yet.
package target
