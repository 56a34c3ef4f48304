package main

import (
	"os"
	"time"

	"github.com/rs/zerolog"
)

// patience is a daemon's with the users of its devices, once it was told to stop.
type patience struct {
	log         zerolog.Logger
	signals     <-chan os.Signal
	limit       time.Duration // 0: none
	willRestart func() bool   // another daemon follows this one
	sync        func()        // writes out what file systems have in memory
}

// syncLimit bounds the last sync, which may wait for storage that never answers.
const syncLimit = 20 * time.Second

// wait returns when it has come to an end, and logs what ended it: true, devices in use are to
// be removed under their users; false, they are left to the next daemon.
func (p *patience) wait() (remove bool) {
	var expired <-chan time.Time
	if p.limit > 0 {
		expired = time.After(p.limit)
	}
	select {
	case sig := <-p.signals:
		p.log.Warn().Str("signal", sig.String()).Msg("second signal: devices are not waited for any more")
		return true
	case <-expired:
	}
	if p.willRestart() {
		return false
	}
	p.log.Warn().Msgf("devices are still served after %v (--stop-timeout): file systems are synced, for at most %v, then I/O fails", p.limit, syncLimit)
	synced := make(chan struct{})
	go func() { p.sync(); close(synced) }()
	select {
	case <-synced:
		p.log.Info().Msg("file systems are synced")
	case <-time.After(syncLimit):
		p.log.Warn().Msgf("the sync of file systems has not ended within %v: what they have in memory may be lost", syncLimit)
	case sig := <-p.signals:
		p.log.Warn().Str("signal", sig.String()).Msg("second signal: the sync of file systems is not waited for, and what they have in memory may be lost")
	}
	return true
}
