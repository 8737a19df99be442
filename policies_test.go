package keyring

import (
	"reflect"
	"testing"
	"time"
)

// TestEachFieldOfThePoliciesIsCompared between the servers, also those that are yet to come.
func TestEachFieldOfThePoliciesIsCompared(t *testing.T) {
	plain := Config{}.policies()
	set := func(name string, field func(*Config) reflect.Value) {
		var c Config
		switch f := field(&c); f.Kind() {
		case reflect.String:
			f.SetString("x")
		default:
			f.SetInt(int64(time.Hour))
		}
		changed := c.policies()
		if changed[name] == plain[name] || len(changed) != len(plain) {
			t.Errorf("%s: %q, without it %q", name, changed[name], plain[name])
		}
	}
	of := func(policy string) {
		one := reflect.ValueOf(Config{}).FieldByName(policy).Type()
		for i := range one.NumField() {
			set(policy+"."+one.Field(i).Name, func(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByName(policy).Field(i) })
		}
	}
	of("Rotation")
	of("Tokens")
	for _, name := range []string{"Every", "Keep"} {
		set("Backups."+name, func(c *Config) reflect.Value {
			return reflect.ValueOf(c).Elem().FieldByName("Backups").FieldByName(name)
		})
	}
	set("RekeyGrace", func(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByName("RekeyGrace") })
}
