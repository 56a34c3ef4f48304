package main

import (
	"fmt"
	"slices"
	"strings"
)

// tableServers are the columns, what we are compared with first.
var tableServers = []string{loopName, kublkName, kublkZCName, nbdName, holdfastName, holdfastRawRef}

// extraServers are measured where -servers names them: the examples of package ublk, on the file
// that holdfast-raw serves or on nothing, and their like in kublk.
var extraServers = []string{fileName, nullName, kublkNullName}

func allServers() []string { return slices.Concat(tableServers, extraServers) }

// results are runs by load and server, rounds in order.
type results map[string]map[string][]*vmRun

func collect(runs []*vmRun) (r results, order []string) {
	r = results{}
	for _, v := range runs {
		if r[v.Load] == nil {
			r[v.Load] = map[string][]*vmRun{}
			order = append(order, v.Load)
		}
		r[v.Load][v.Server] = append(r[v.Load][v.Server], v)
	}
	return r, order
}

func (r results) median(load, server string, f func(*vmRun) float64) float64 {
	var v []float64
	for _, run := range r[load][server] {
		v = append(v, f(run))
	}
	return median(v)
}

// ratio is the median of the rounds' ratios of a to b.
func (r results) ratio(load, a, b string, f func(*vmRun) float64) float64 {
	var v []float64
	for i := range min(len(r[load][a]), len(r[load][b])) {
		v = append(v, f(r[load][a][i])/f(r[load][b][i]))
	}
	return median(v)
}

func iops(r *vmRun) float64 { return r.IOPS }
func mean(r *vmRun) float64 { return r.Mean }
func p50(r *vmRun) float64  { return r.P50 }

// vmTable prints everything, ratios first.
func vmTable(runs []*vmRun) string {
	r, order := collect(runs)
	var b strings.Builder
	section := func(title string, columns []string, cell func(load, server string) string, keep func(load string) bool) {
		fmt.Fprintf(&b, "\n%s\n%-22s", title, "")
		for _, s := range columns {
			fmt.Fprintf(&b, " %12s", s)
		}
		b.WriteByte('\n')
		for _, l := range order {
			if keep != nil && !keep(l) {
				continue
			}
			fmt.Fprintf(&b, "%-22s", l)
			for _, s := range columns {
				fmt.Fprintf(&b, " %12s", cell(l, s))
			}
			b.WriteByte('\n')
		}
	}
	columns := slices.Clone(tableServers)
	for _, s := range extraServers {
		if slices.ContainsFunc(runs, func(v *vmRun) bool { return v.Server == s }) {
			columns = append(columns, s)
		}
	}
	shallow := func(l string) bool { return strings.Contains(l, " d1 ") }
	section("IOPS of holdfast on its ploop image, as a ratio to", tableServers[:4], func(l, s string) string {
		return fmt.Sprintf("%.2f", r.ratio(l, holdfastName, s, iops))
	}, nil)
	section("IOPS of holdfast on the raw file, as a ratio to", tableServers[:4], func(l, s string) string {
		return fmt.Sprintf("%.2f", r.ratio(l, holdfastRawRef, s, iops))
	}, nil)
	section("mean latency at depth 1 of holdfast on its ploop image, as a ratio to", tableServers[:4], func(l, s string) string {
		return fmt.Sprintf("%.2f", r.ratio(l, holdfastName, s, mean))
	}, shallow)
	for _, pair := range [][2]string{{fileName, kublkZCName}, {fileName, holdfastRawRef}, {nullName, kublkNullName}} {
		if slices.Contains(columns, pair[0]) && len(r[order[0]][pair[1]]) > 0 {
			section("IOPS of ublk/examples/"+pair[0]+", as a ratio to", pair[1:], func(l, s string) string {
				return fmt.Sprintf("%.2f", r.ratio(l, pair[0], s, iops))
			}, nil)
		}
	}
	section("IOPS", columns, func(l, s string) string { return fmt.Sprintf("%.0f", r.median(l, s, iops)) }, nil)
	section("latency at depth 1, mean/median, us", columns, func(l, s string) string {
		return fmt.Sprintf("%.0f/%.0f", r.median(l, s, mean), r.median(l, s, p50))
	}, shallow)
	section("processor time of the server per request, us (loop: of all kernel threads)", columns, func(l, s string) string {
		return fmt.Sprintf("%.1f", r.median(l, s, func(v *vmRun) float64 { return v.CPU }))
	}, nil)
	section("processor time of the whole guest per request, fio included, us", columns, func(l, s string) string {
		return fmt.Sprintf("%.1f", r.median(l, s, func(v *vmRun) float64 { return v.Busy }))
	}, nil)
	section("context switches of the server per request", columns[1:], func(l, s string) string {
		return fmt.Sprintf("%.2f", r.median(l, s, func(v *vmRun) float64 { return v.Switches }))
	}, nil)
	b.WriteString(bars(r, order))
	return b.String()
}

// best is the ratio of the best rounds: what else runs on the machine only ever
// slows things down, so this is the figure to believe on a busy one.
func (r results) best(load, a, b string, f func(*vmRun) float64, least bool) float64 {
	pick := func(server string) float64 {
		var v []float64
		for _, run := range r[load][server] {
			v = append(v, f(run))
		}
		if least {
			return slices.Min(v)
		}
		return slices.Max(v)
	}
	return pick(a) / pick(b)
}

// bars holds the quick set against what is asked for, by the median of the
// rounds' ratios.
func bars(r results, order []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nbars%65s %7s\n", "median", "best")
	line := func(load, what, server string, f func(*vmRun) float64, want float64, atMost bool) {
		if len(r[load][holdfastName]) == 0 || len(r[load][server]) == 0 {
			return // not measured
		}
		got := r.ratio(load, holdfastName, server, f)
		verdict, sign := "met", ">="
		if atMost {
			sign = "<="
		}
		if atMost && got > want || !atMost && got < want {
			verdict = "MISSED"
		}
		fmt.Fprintf(&b, "%-22s %-38s %8.2f %7.2f  %s %.2f  %s\n", load, what, got, r.best(load, holdfastName, server, f, atMost), sign, want, verdict)
	}
	for _, write := range []bool{false, true} {
		deep := load{write, 4 << 10, true, 32, 1}.String()
		if slices.Contains(order, deep) {
			line(deep, "IOPS / kublk auto_zc", kublkZCName, iops, 0.9, false)
			line(deep, "IOPS / qemu-nbd", nbdName, iops, 3, false)
		}
		one := load{write, 4 << 10, true, 1, 1}.String()
		if slices.Contains(order, one) {
			line(one, "mean latency / kublk auto_zc", kublkZCName, mean, 1.15, true)
			line(one, "median latency / kublk auto_zc", kublkZCName, p50, 1.15, true)
		}
	}
	return b.String()
}
