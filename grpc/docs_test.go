package keyringgrpc_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	keyringgrpc "example.com/keyring/grpc"
)

// TestTransportPageHasTheLimits of this module, as they are in the code.
func TestTransportPageHasTheLimits(t *testing.T) {
	page, err := os.ReadFile("../docs/transport.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		fmt.Sprintf("| handshakes under way | %d, for %d seconds each;", keyringgrpc.MaxPending, keyringgrpc.Patience/time.Second),
		fmt.Sprintf("| connections of one server | %d for calls and %[1]d for raft;", keyringgrpc.MaxPerServer),
		fmt.Sprintf("| connections of clients | `Config.MaxClients`, %d unless", keyringgrpc.MaxClients),
		fmt.Sprintf("| calls of one server at a time | %d;", keyringgrpc.MaxCalls),
		fmt.Sprintf("| a request or answer between servers | %d MiB", keyringgrpc.MaxMessage>>20),
	} {
		if !strings.Contains(string(page), row) {
			t.Errorf("docs/transport.md does not have %q", row)
		}
	}
}
