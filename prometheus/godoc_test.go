package prometheus_test

import (
	"example.com/keyring"
	keyringprometheus "example.com/keyring/prometheus"
	"github.com/prometheus/client_golang/prometheus"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocNew(cfg *keyring.Config) error {
	metrics, err := keyringprometheus.New(prometheus.DefaultRegisterer)
	if err != nil {
		return err
	}
	cfg.Metrics = metrics
	return nil
}

var _ = []any{godocNew}
