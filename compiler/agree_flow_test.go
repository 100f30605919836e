package compiler_test

import (
	"net/netip"

	"thole/compiler/mark"
	"thole/compiler/reference"
	"thole/ruleset"
	"thole/ruleset/simulator"
)

// A wire runs the packets of one flow through a table, with what the kernel remembers of them.
type wire struct {
	host
	sim *simulator.Simulator
	reference.Flow

	known bool // conntrack has an entry
	back  bool // its first packet was one from the server's port
	ct    simulator.Conntrack
}

// simulateFlow says which packets pass. It ends with the first one that is refused in a connection of TCP.
func (h host) simulateFlow(sim *simulator.Simulator, f reference.Flow) []bool {
	w := wire{host: h, sim: sim, Flow: f}
	var verdicts []bool
	for _, p := range f.Packets {
		before := w.ct.Mark
		passes := w.send(p)
		verdicts = append(verdicts, passes)
		if w.ended(p, passes, before) {
			break
		}
	}
	return verdicts
}

// ended reports whether a packet ended its connection of TCP: its SYN was dropped, or it was refused. What another
// process sends to the outside is refused without harm: the reset has the wrong sequence number for the connection.
func (w *wire) ended(p reference.Packet, passes bool, before uint32) bool {
	dead := func(ct uint32) bool { return ct&(mark.DeadBit|mark.OpenBit) == mark.DeadBit }
	if w.Protocol != ruleset.ProtoTCP || w.OtherMark != 0 {
		return false
	}
	if p.Kind == reference.Open {
		return !passes
	}
	return !dead(before) && dead(w.ct.Mark) && !(p.Kind == reference.Data && p.To.Address.IsValid())
}

// send has OUTPUT see the packet if its sender is on this node, and INPUT if its receiver is.
func (w *wire) send(p reference.Packet) (passes bool) {
	if !w.known {
		w.ct, w.back = simulator.Conntrack{}, p.Back
	}
	packet := w.packet(p)
	onNode := !p.From.Address.IsValid() && !p.To.Address.IsValid()
	if !p.From.Address.IsValid() {
		packet.Oif, packet.Socket = 2, w.socket(p.From)
		if onNode {
			packet.Oif, packet.RouteType = ruleset.IfindexLo, ruleset.RTNLocal
		}
		if w.sim.Run(ruleset.Output, &packet).Verdict == ruleset.Drop {
			return false
		}
		w.otherProgram()
		w.known = w.known || onNode // what lo carries is confirmed in POSTROUTING
	}
	if p.To.Address.IsValid() {
		w.known = true
		return true
	}
	w.find(p, &packet)
	packet.Iif, packet.Oif, packet.RouteType = 2, 0, ruleset.RTNLocal
	if onNode {
		packet.Iif = ruleset.IfindexLo
		w.sim.Run(ruleset.Prerouting, &packet)
	}
	if w.sim.Run(ruleset.Input, &packet).Verdict == ruleset.Drop || packet.OutOfWindow {
		return false
	}
	w.known = true
	return true
}

// otherProgram is a rule behind Thole's, as of "CONNMARK --save-mark".
func (w *wire) otherProgram() {
	if w.OtherMark != 0 {
		w.ct.Mark = w.OtherMark
	}
}

// find sets what nftables finds for a packet at INPUT.
func (w *wire) find(p reference.Packet, packet *simulator.Packet) {
	packet.Socket, packet.Hidden = w.socket(p.To), nil
	switch p.Finds {
	case reference.FindsOther:
		packet.Socket = w.socket(p.Other)
	case reference.FindsNothing:
		packet.Socket = nil
	case reference.FindsRequest:
		packet.Socket = &simulator.Socket{Request: true}
	case reference.FindsTimeWait:
		packet.Socket = &simulator.Socket{Request: true}
		if !p.From.Address.IsValid() { // early demultiplexing attaches it to what comes from outside
			packet.Hidden = w.socket(p.To)
		} else {
			packet.Hidden = packet.Socket
		}
	}
}

// packet is p as its sender makes it.
func (w *wire) packet(p reference.Packet) simulator.Packet {
	packet := simulator.Packet{
		Conntrack: &w.ct, State: ruleset.StateEstablished, L4Proto: w.Protocol,
		FromPort: reference.ClientPort, Port: w.Port,
		From: address(p.From, w.IPv6), To: address(p.To, w.IPv6), Mark: p.Mark, Priority: p.Priority, RouteType: 1,
		Carries: p.Kind != reference.Open,
	}
	if !w.known {
		packet.State = ruleset.StateNew
	}
	if p.Back != w.back {
		packet.Direction = ruleset.DirReply
	}
	if p.Back {
		packet.FromPort, packet.Port = packet.Port, packet.FromPort
	}
	if w.Protocol == ruleset.ProtoTCP {
		packet.TCPFlags = ruleset.TCPAck
	}
	if p.Kind == reference.Open {
		packet.TCPFlags = ruleset.TCPSyn
	}
	return packet
}

// address is that of an end: an address outside, or this node's.
func address(e reference.Endpoint, v6 bool) netip.Addr {
	switch {
	case e.Address.IsValid():
		return e.Address
	case v6:
		return own6
	default:
		return own4
	}
}
