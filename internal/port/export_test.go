package port

// Decoders decode what servers ask and answer each other, by its kind.
var Decoders = map[string]func([]byte) error{
	"hello":   func(b []byte) error { _, err := helloType.DecodeKnown(b); return err },
	"place":   func(b []byte) error { _, err := movedHelloType.Decode(b); return err },
	"joining": func(b []byte) error { _, err := joinRequestType.Decode(b); return err },
	"joined":  func(b []byte) error { _, err := joinAnswerType.DecodeKnown(b); return err },
	"proving": func(b []byte) error { _, err := proofRequestType.Decode(b); return err },
	"proof":   func(b []byte) error { _, err := proofAnswerType.DecodeKnown(b); return err },
}
