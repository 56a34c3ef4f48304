package device

import (
	"holdfast/api"
	"holdfast/ublk"
)

var dataPaths = map[string]ublk.DataPath{
	"": ublk.Auto, "auto": ublk.Auto, "copy": ublk.Copy, "zero-copy": ublk.ZeroCopy,
}

const (
	defaultDepth     = 128
	mostDefaultQueue = 4
)

// A spec's bounds are the driver's.
var (
	_ = [1]struct{}{}[api.MaxQueues-ublk.MaxQueues]
	_ = [1]struct{}{}[api.MaxDepth-ublk.MaxDepth]
)
