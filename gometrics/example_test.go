package gometrics_test

import (
	"fmt"
	"log"
	"time"

	"example.com/keyring"
	"example.com/keyring/gometrics"
	"github.com/hashicorp/go-metrics"
)

// The keyring's metrics go where raft's go. Config.Metrics of keyring.Open and of node.Start take the result
// of New.
func ExampleNew() {
	sink := metrics.NewInmemSink(time.Hour, time.Hour) // or a statsd sink, ...
	conf := metrics.DefaultConfig("")
	conf.EnableHostname = false
	global, err := metrics.NewGlobal(conf, sink) // raft's figures go there too
	if err != nil {
		log.Fatal(err)
	}
	defer global.Shutdown()

	cfg := keyring.Config{
		Metrics: gometrics.New(metrics.Default()),
		// and all the rest
	}
	cfg.Metrics.SetGauge("keyring.keys", 2, nil) // as the keyring does every 30 seconds
	fmt.Println(sink.Data()[0].Gauges["keyring.keys"].Value)
	// Output: 2
}
