package manager

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"holdfast/api"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics draws all figures from one look at the devices.
type metrics struct{ m *Manager }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("holdfast_"+name, help, labels, nil)
}

var (
	descInfo            = desc("device_info", "Devices that are served: always 1.", "device", "path", "top", "data_path", "recovery")
	descState           = desc("device_state", "1 for the state that the device is in.", "device", "state")
	descSize            = desc("device_size_bytes", "Size of the disk.", "device")
	descRequests        = desc("requests_total", "Requests that came.", "device", "op")
	descBytes           = desc("bytes_total", "Bytes that these were about.", "device", "op")
	descErrors          = desc("request_errors_total", "Requests that failed.", "device")
	descSlow            = desc("slow_requests_total", "Requests off the fast path.", "device")
	descLatency         = desc("request_duration_seconds", fmt.Sprintf("Time from a request's arrival to its completion, time held included; one request in %d is measured.", api.LatencySample), "device", "op")
	descInFlight        = desc("inflight_requests", "Requests that have come and not gone, those held included.", "device")
	descOldest          = desc("oldest_request_seconds", "Age of the oldest request: under way, held, parked (waiting for space), or stuck (in replaced files); 0: there is none.", "device", "where")
	descParked          = desc("parked_requests", "Requests that wait for space in the storage.", "device")
	descHeld            = desc("held_requests", "Requests held in standby or for a replacement. At tags the device takes no more.", "device")
	descTags            = desc("tags", "Requests that the device can have at once.", "device")
	descStuck           = desc("stuck_requests", "Requests that have not come back from replaced files.", "device")
	descStandby         = desc("standby", "1: in standby.", "device")
	descSupported       = desc("standby_supported", "1: errors of the storage would be held.", "device")
	descStandbySeconds  = desc("standby_seconds_total", "Time in standby.", "device")
	descEntries         = desc("standby_entries_total", "Times that the device went to standby.", "device")
	descResumes         = desc("resumes_total", "Times that a standby ended and what was held was served.", "device")
	descRecoveries      = desc("recoveries_total", "The same as resumes_total, by its name before.", "device")
	descHeldTotal       = desc("requests_held_total", "Requests that were held.", "device")
	descHeldFailed      = desc("held_requests_failed_total", "Held requests that failed, as the hold ended without a resume.", "device")
	descTriggers        = desc("standby_triggers_total", "Errors of the storage that lead to standby.", "device", "errno")
	descInconsistencies = desc("inconsistencies_total", "Contradictory uses of check, leases and flag; the device is empty for the check's own.", "device", "kind")
	descKey             = desc("standby_check", "1: the process-wide standby check is on.")
	descServer          = desc("server_state", "1 for the state that the device's server is in.", "device", "state")
	descReport          = desc("report_age_seconds", "How long ago the server said what is shown of the device.", "device")
	descTarget          = desc("target_present", "1: the integration with this kind of target has found it.", "target")
)

var _ prometheus.Collector = metrics{}

// Describe says nothing, which is the way to say that it depends.
func (c metrics) Describe(chan<- *prometheus.Desc) {}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect takes the picture.
func (c metrics) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	key := c.m.Key()
	send(descKey, prometheus.GaugeValue, boolean(key.On))
	for _, t := range key.Targets {
		send(descTarget, prometheus.GaugeValue, boolean(t.Present), t.Kind)
	}
	for kind, n := range key.Inconsistencies {
		send(descInconsistencies, prometheus.CounterValue, float64(n), "", kind)
	}
	states := []string{api.StateLive, api.StateHung, api.StateParked, api.StateStandby, api.StateFailing, api.StateReplacing, api.StateStopped, api.StateRecovering, api.StateUnrecovered, api.StateUnreleased, api.StateSilent, api.StateDying}
	serverStates := []string{api.ServerNone, api.ServerStarting, api.ServerUp, api.ServerSilent, api.ServerDying}
	for _, dev := range c.m.peers.current(context.Background()) {
		st := &dev
		s, n, name := &st.Standby, &st.Counters, st.Name
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			send(d, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
		}
		count := func(d *prometheus.Desc, v float64, labels ...string) {
			send(d, prometheus.CounterValue, v, append([]string{name}, labels...)...)
		}
		for _, state := range serverStates {
			gauge(descServer, boolean(st.Server.State == state), state)
		}
		if age, ok := c.m.peers.reportAge(name); ok {
			gauge(descReport, age)
		}
		if st.Path == "" {
			continue // it has no disk
		}
		top := ""
		if n := len(st.Images); n > 0 {
			top = st.Images[n-1].Path
		}
		gauge(descInfo, 1, st.Path, top, st.DataPath, s.Resume)
		for _, state := range states {
			gauge(descState, boolean(st.State == state), state)
		}
		gauge(descStandby, boolean(s.Value == "on"))
		gauge(descSupported, boolean(s.Value != "not supported"))
		if api.Waits(st.State) {
			continue // the rest is not known
		}
		gauge(descSize, float64(st.Size))
		for _, o := range []struct {
			op              string
			requests, bytes uint64
		}{{"read", n.Reads, n.ReadBytes}, {"write", n.Writes, n.WriteBytes}, {"flush", n.Flushes, 0}, {"discard", n.Discards, n.DiscardBytes}, {"write_zeroes", n.WriteZeroes, n.WriteZeroBytes}} {
			count(descRequests, float64(o.requests), o.op)
			if o.op != "flush" {
				count(descBytes, float64(o.bytes), o.op)
			}
		}
		count(descErrors, float64(n.Errors))
		count(descSlow, float64(n.Slow))
		for _, l := range st.Latency {
			buckets, sum := map[float64]uint64{}, uint64(0)
			for i, bound := range api.LatencyBounds {
				sum += l.Buckets[i]
				buckets[bound] = sum
			}
			ch <- prometheus.MustNewConstHistogram(descLatency, l.Count, l.Sum, buckets, name, l.Op)
		}
		gauge(descInFlight, float64(n.InFlight))
		gauge(descParked, float64(n.Parked))
		underWay := 0.0
		if st.Oldest != nil {
			underWay = st.Oldest.Seconds
		}
		gauge(descOldest, underWay, "under-way")
		gauge(descOldest, s.HeldSeconds, "held")
		gauge(descOldest, n.ParkedSeconds, "parked")
		gauge(descOldest, s.StuckSeconds, "stuck")
		gauge(descHeld, float64(s.Held))
		gauge(descTags, float64(s.Tags))
		gauge(descStuck, float64(s.Stuck))
		count(descStandbySeconds, s.Seconds)
		count(descEntries, float64(s.Entered))
		count(descResumes, float64(s.Resumed))
		count(descRecoveries, float64(s.Resumed))
		count(descHeldTotal, float64(s.HeldTotal))
		count(descHeldFailed, float64(s.HeldFailed))
		for errno, n := range s.Triggers {
			count(descTriggers, float64(n), errno)
		}
		for kind, n := range s.Inconsistencies {
			count(descInconsistencies, float64(n), kind)
		}
	}
}

// reportAge is how long ago a device's server said what is known of it; false: what is known was
// not said by a server.
func (ps *peers) reportAge(name string) (seconds float64, ok bool) {
	p := ps.get(name)
	if p == nil {
		return 0, false
	}
	o := p.observation()
	if o.asOf.IsZero() {
		return 0, false
	}
	return max(ps.cfg.now().Sub(o.asOf).Seconds(), 0), true
}

// metricsHandler answers GET /metrics.
func (m *Manager) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(metrics{m}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 30 * time.Second})
}

// listenMetrics opens the listener for Prometheus, which has nothing but the figures.
func (m *Manager) listenMetrics() error {
	if m.cfg.MetricsListen == "" {
		return nil
	}
	l, err := net.Listen("tcp", m.cfg.MetricsListen)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.metricsHandler())
	m.metrics = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	go m.metrics.Serve(l)
	m.log.Info().Str("address", l.Addr().String()).Msg("metrics")
	return nil
}
