package conformance_test

import (
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/gometrics"
	armon "github.com/armon/go-metrics"
	hashicorp "github.com/hashicorp/go-metrics"
	"github.com/hashicorp/go-metrics/compat"
)

// TestGoMetricsByEitherPath: one adapter serves both import paths, and what lies between them.
func TestGoMetricsByEitherPath(t *testing.T) {
	give := func(m keyring.Metrics) {
		m.SetGauge("keyring.problems", 3, map[string]string{"kind": "clock"})
		m.AddCounter("keyring.key.seals", 256, map[string]string{"key": "k1"})
		m.AddCounter("keyring.key.seals", 512, map[string]string{"key": "k1"})
	}
	check := func(t *testing.T, gauge float32, counter float64) {
		if gauge != 3 || counter != 768 {
			t.Errorf("the gauge is %v and the counter %v, want 3 and 768", gauge, counter)
		}
	}
	const gauge, counter = "keyring.problems;kind=clock", "keyring.key.seals;key=k1"
	t.Run("armon", func(t *testing.T) {
		sink := armon.NewInmemSink(time.Hour, time.Hour)
		give(gometrics.New(sink))
		d := sink.Data()[0]
		check(t, d.Gauges[gauge].Value, d.Counters[counter].Sum)
	})
	t.Run("hashicorp", func(t *testing.T) {
		sink := hashicorp.NewInmemSink(time.Hour, time.Hour)
		give(gometrics.New(sink))
		d := sink.Data()[0]
		check(t, d.Gauges[gauge].Value, d.Counters[counter].Sum)
	})
	t.Run("compat", func(t *testing.T) {
		sink := metrics.NewInmemSink(time.Hour, time.Hour)
		conf := metrics.DefaultConfig("")
		conf.EnableHostname, conf.EnableRuntimeMetrics = false, false
		m, err := metrics.New(conf, sink)
		if err != nil {
			t.Fatal(err)
		}
		give(gometrics.New(m))
		d := sink.Data()[0]
		check(t, d.Gauges[gauge].Value, d.Counters[counter].Sum)
	})
}
