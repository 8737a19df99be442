// Package gometrics passes the metrics of a keyring to go-metrics, which raft uses for its own: it makes the
// Metrics of a keyring.Config or a node.Config.
//
//	n, err := node.Start(ctx, node.Config{
//		Dir:     dir,
//		KEKs:    []keyring.KEK{kek},
//		Metrics: gometrics.New(metrics.Default()),
//	})
//
// [keyring.MetricInfos] lists the figures. docs/operations.md of the repository has an alert for each.
//
// # Import paths
//
// go-metrics has two import paths, github.com/hashicorp/go-metrics and the older github.com/armon/go-metrics.
// This package imports neither and works with both. The metrics of the keyring arrive beside those of raft if
// it is given the Default of the path that raft uses:
//
//   - raft v1.8.0 uses github.com/hashicorp/go-metrics,
//   - raft v1.7.3 uses github.com/hashicorp/go-metrics/compat, which is the older path unless the
//     program is built with the tag hashicorpmetrics.
package gometrics

import (
	"strings"

	"example.com/keyring"
)

// Label is the Label type of either import path.
type Label interface {
	~struct {
		Name  string
		Value string
	}
}

// Sink is the part of go-metrics that this package uses. *Metrics of either path implements it, and so does
// each MetricSink.
type Sink[L Label] interface {
	SetGaugeWithLabels(key []string, value float32, labels []L)
	IncrCounterWithLabels(key []string, value float32, labels []L)
}

// New returns a keyring.Metrics that passes each metric to s. The key is the metric's name, split at its
// dots.
//
//	Metrics: gometrics.New(metrics.Default())
//
// Default returns the result of the last NewGlobal; call NewGlobal first, because later calls have no effect
// here.
func New[L Label](s Sink[L]) keyring.Metrics { return adapter[L]{s} }

type adapter[L Label] struct{ sink Sink[L] }

func (a adapter[L]) SetGauge(name string, value float64, labels map[string]string) {
	a.sink.SetGaugeWithLabels(strings.Split(name, "."), float32(value), list[L](labels))
}

func (a adapter[L]) AddCounter(name string, growth float64, labels map[string]string) {
	a.sink.IncrCounterWithLabels(strings.Split(name, "."), float32(growth), list[L](labels))
}

// list returns the labels as go-metrics has them. A metric of the keyring has at most one.
func list[L Label](labels map[string]string) (list []L) {
	for name, value := range labels {
		list = append(list, L{Name: name, Value: value})
	}
	return list
}
