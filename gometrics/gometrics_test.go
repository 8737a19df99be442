package gometrics_test

import (
	"reflect"
	"testing"
	"time"

	"example.com/keyring/gometrics"
	"github.com/hashicorp/go-metrics"
)

// otherLabel is the label of another import path.
type otherLabel struct {
	Name  string
	Value string
}

type otherSink struct {
	keys   [][]string
	values []float32
	labels [][]otherLabel
}

func (s *otherSink) add(key []string, value float32, labels []otherLabel) {
	s.keys, s.values, s.labels = append(s.keys, key), append(s.values, value), append(s.labels, labels)
}
func (s *otherSink) SetGaugeWithLabels(key []string, value float32, labels []otherLabel) {
	s.add(append([]string{"gauge"}, key...), value, labels)
}
func (s *otherSink) IncrCounterWithLabels(key []string, value float32, labels []otherLabel) {
	s.add(append([]string{"counter"}, key...), value, labels)
}

func TestAnySinkGetsKeysAndLabels(t *testing.T) {
	s := &otherSink{}
	m := gometrics.New(s)
	m.SetGauge("keyring.keys", 2, nil)
	m.AddCounter("keyring.key.seals", 256, map[string]string{"key": "k1"})
	want := &otherSink{
		keys:   [][]string{{"gauge", "keyring", "keys"}, {"counter", "keyring", "key", "seals"}},
		values: []float32{2, 256},
		labels: [][]otherLabel{nil, {{"key", "k1"}}},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("the sink has %+v, want %+v", s, want)
	}
}

func TestFiguresReachGoMetrics(t *testing.T) {
	sink := metrics.NewInmemSink(time.Hour, time.Hour)
	conf := metrics.DefaultConfig("")
	conf.EnableHostname, conf.EnableRuntimeMetrics = false, false
	global, err := metrics.New(conf, sink)
	if err != nil {
		t.Fatal(err)
	}
	m := gometrics.New(global)
	m.SetGauge("keyring.problems", 3, map[string]string{"kind": "clock"})
	m.AddCounter("keyring.key.seals", 256, map[string]string{"key": "k1"})
	m.AddCounter("keyring.key.seals", 512, map[string]string{"key": "k1"})
	d := sink.Data()[0]
	if g := d.Gauges["keyring.problems;kind=clock"]; g.Value != 3 {
		t.Errorf("the gauge is %v, want 3", g.Value)
	}
	if c := d.Counters["keyring.key.seals;key=k1"]; c.AggregateSample == nil || c.Sum != 768 {
		t.Errorf("the counter is %v, want 768", c)
	}
}
