package device

import "holdfast/ublk"

var dataPaths = map[string]ublk.DataPath{
	"": ublk.Auto, "auto": ublk.Auto, "copy": ublk.Copy, "zero-copy": ublk.ZeroCopy,
}

const (
	defaultDepth     = 128
	mostDefaultQueue = 4
)
