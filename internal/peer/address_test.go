package peer_test

import (
	"strings"
	"testing"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

var goodAddresses = []string{
	"10.0.0.1:7900", "[::1]:1", "[fe80::1%eth0]:7900", "localhost:65535", "s1.example.com.:7900", "s_1-a:7900", "m\u00fcnchen.example:7900",
}

var badAddresses = []string{
	"", "s1", "s1:", ":7900", "0.0.0.0:7900", "[::]:7900", "[::ffff:0.0.0.0]:7900", "0:7900", "0x0:7900", "127.1:7900",
	"224.0.0.1:7900", "[ff02::1]:7900", "255.255.255.255:7900", "s1:0", "s1:00", "s1:07900", "s1:+7900", "s1:65536", "s1:-1", "s1:http",
	"foo:bar", "s1:7900 ", " s1:7900", "s1 :7900", "s1/x:7900", "http://s1:7900", "s1:7900:7901", "::1:7900", ".:7900", "a@b:7900",
	strings.Repeat("a", 250) + ":79000", strings.Repeat("a", 256) + ":7900",
}

func TestAddressesAreThoseOfOneServer(t *testing.T) {
	for _, addr := range goodAddresses {
		if err := peer.CheckAddress(addr); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	for _, addr := range badAddresses {
		if err := peer.CheckAddress(addr); err == nil || len(err.Error()) > 500 {
			t.Errorf("%.300q: %v", addr, err)
		}
	}
	for id, ok := range map[string]bool{
		"s1": true, "S 1": true, "m\u00fcnchen": true, "": false, "s1 ": false, "\ts1": false, "s\n1": false, "\xff": false,
		strings.Repeat("s", 256): false,
	} {
		if err := peer.CheckServerID(id); (err == nil) != ok {
			t.Errorf("%.20q: %v", id, err)
		}
	}
}

// The ring takes the IDs of all servers that can be added.
func TestLongestServerIDIsTheRings(t *testing.T) {
	if peer.MaxServerID != meta.MaxServerID {
		t.Errorf("%d, want %d", peer.MaxServerID, meta.MaxServerID)
	}
}
